"""Names of keys and texts of values that look like secrets."""

from __future__ import annotations

import re

#: Names of keys and texts of values that look like secrets.
SECRET_NAME = re.compile(
    r"api[_-]?key|private[_-]?key|secret|passw(?:or)?d|passphrase|credential|authorization|cookie"
    r"|(?:^|[_-])(?:key|token|auth|bearer|pwd|creds|dsn|webhook)(?:$|[_-])"
    r"|(?:^|[_-])(?:pw|pass|pat)$",  # not pass_at_k
    re.IGNORECASE,
)
#: verl's keys that name a column of the data. ``SECRET_NAME`` fits most of them.
COLUMN_KEYS = ("prompt_key", "reward_fn_key", "image_key", "video_key", "audio_key", "teacher_key")
#: Others may have made the values, so that a search takes a time linear in the length of the text.
SECRET_VALUE = re.compile(
    # Tokens of Hugging Face, OpenAI and others, GitHub, GitLab, Slack, AWS, Google, NVIDIA, PyPI and Stripe
    r"\b(?:github_pat_|glpat-|xox[a-z]-|AIza|ya29\.|nvapi-|pypi-AgE|[rs]k_(?:live|test)_)[A-Za-z0-9_-]{12,}"
    # Names of folders begin in the same way, but have separators or small letters: hf_models, sk-learn-2, ASIA_maths
    r"|\b(?:hf_|gh[oprsu]_|sk-(?:proj-|svcacct-|admin-|or-v1-|ant-[a-z0-9]+-)?)[A-Za-z0-9]{12,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"
    # Tokens of Groq, Replicate, npm and xAI. Ordinary names begin in the same way, but have separators: xai-org
    r"|\b(?:gsk_|r8_|npm_|xai-)[A-Za-z0-9]{16,}"
    # Tokens of Docker, LangSmith, Together, DigitalOcean and Vault
    r"|\b(?:dckr_[po]at_|lsv2_[ps][tk]_|tgp_v1_|dop_v1_|hvs\.)[A-Za-z0-9_-]{16,}"
    # Of Weights & Biases, Perplexity and RunPod. Names of runs and models begin in the same way, but have separators
    r"|\b(?:wandb_v1_|pplx-|rpa_)[A-Za-z0-9]{16,}"
    r"|\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"  # of SendGrid
    r"|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"|\beyJ[A-Za-z0-9_-]{8,}"  # a JSON Web Token, which begins with {" in base64
    r"|(?:^|(?i:authorization:))\s*(?i:bearer)\s+\S+\s*$"
    r"|(?i:authorization:\s*basic)\s+\S+\s*$"
    # NAME:PASSWORD in base64, in which a capital letter or a digit follows a small letter, unlike in words
    r"|^\s*(?i:basic)\s+(?=[A-Za-z0-9+/]*[a-z][A-Z0-9][A-Za-z0-9+/]{4})[A-Za-z0-9+/]+={0,2}\s*$"
    r"|://[^/@\s:]*:[^/@\s]+@"
    r"|hooks\.slack\.com/(?:services|workflows)/\S+"  # whoever knows the URL can post
    r"|[?&](?i:sig|x-(?:amz|goog)-signature)=[^&\s]{12,}"  # a signed URL of Azure, AWS or Google
)
