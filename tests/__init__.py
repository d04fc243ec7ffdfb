import os

# A missing path may be the id of a dataset: no test asks the real hub for it. Read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
