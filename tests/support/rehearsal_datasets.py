"""Dataset classes as users write them, for rehearsals with data.custom_cls."""

from verl.utils.dataset.rl_dataset import RLHFDataset


class Questions(RLHFDataset):
    """Rows of other columns than verl's: ``question`` and ``result``."""

    def maybe_filter_out_long_prompts(self, dataframe=None):
        def in_verls_columns(row):
            return {
                "data_source": "questions",
                "prompt": [{"role": "user", "content": f"{row['question']} Put the answer in \\boxed{{}}."}],
                "reward_model": {"style": "rule", "ground_truth": row["result"]},
                "extra_info": {"index": row["number"]},
            }

        return super().maybe_filter_out_long_prompts(dataframe.map(in_verls_columns))


class EndlessQuestions(Questions):
    """Ignores ``max_samples``."""

    def __init__(self, *arguments, max_samples=-1, **others):
        super().__init__(*arguments, **others)


class BrokenQuestions(Questions):
    def __len__(self):
        raise RuntimeError("the index is damaged")
