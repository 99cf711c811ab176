"""A row store that is a dict: what stands in the place of verl's queue where there is no verl."""


class DictRows:
    """See ``verl_gsd.extension.RowStore``."""

    def __init__(self):
        self.rows, self.tags = {}, {}

    def read(self, keys, columns=None):
        return [{name: self.rows[key][name] for name in columns or self.rows[key]} for key in keys]

    def put(self, rows, tags=None):
        for key, row in rows.items():
            self.rows[key] = self.rows.get(key, {}) | dict(row)
            if tags is not None:
                self.tags[key] = dict(tags[key])

    def drop(self, keys):
        for key in keys:
            del self.rows[key], self.tags[key]
