"""Settings of the rows of small tables."""

PAPERS = ("ae", "kla", "pt_kla", "pt_kla_fb", "pt_kla_sfb")
ALONE = {"pretrain": {"max_epochs": 0}, "kl": {"policy": "linear", "target_rate": 4.0}}
AUTOENCODER = {"train": {"max_epochs": 0}}
WIDE = {"model": {"hidden_size": 9}}
NO_KL = {"policy": "constant", "anneal_epochs": 10, "target_rate": 4.0}
LANGUAGE_MODEL = {"model": {"latent_size": 0}, "pretrain": {"max_epochs": 0}, "kl": NO_KL}
NO_SAMPLES = ("evaluation.samples=0", "evaluation.importance_samples=1")
