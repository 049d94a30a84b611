"""Settings that methods share in the benchmark of Fang et al. (2021), as parts of recipes.

G. Fang, J. Song, X. Wang, C. Shen, X. Wang, M. Song, "Contrastive Model Inversion for Data-Free Knowledge
Distillation", IJCAI 2021: 400 student steps per epoch; the student's optimiser is SGD 0.1 / 0.9 / 1e-4 with a
cosine schedule.
"""

KL = {"epochs": 200, "batch_size": 256, "loss": "kl", "temperature": 1.0}
FIVE_TO_ONE = {"rounds_per_epoch": 80, "synthesis_steps": 1, "student_steps": 5}
TEN_TO_ONE = {"rounds_per_epoch": 40, "synthesis_steps": 1, "student_steps": 10}
LARGE_GENERATOR = {
    "size": "large",
    "latent_dim": 256,
    "initialisation": "torch",
    "learning_rate": 1e-3,
    "beta1": 0.5,
    "beta2": 0.999,
}
