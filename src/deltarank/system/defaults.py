"""The default of each option, written once: the library applies it, and the command line shows it without torch."""

from typing import Final


class Default:
    """Ranks have their defaults in `deltarank.results`, servers in `deltarank.servers`."""

    SOLVER: Final = "auto"
    TOLERANCE: Final = 1e-4
    COMPUTE_DTYPE: Final = "float32"
    DEVICE: Final = "cpu"
    AUDIT: Final = 0
    ACTIVATION_TOKENS: Final = 4096
    ADAPTER_RANK: Final = 64
    SAMPLED_MATRICES: Final = 8
    SEED: Final = 0
    SAMPLES: Final = 4
    MAX_TOKENS: Final = 128
    QUICK_SAMPLES: Final = 1
    QUICK_MAX_TOKENS: Final = 64
    MODEL_DTYPE: Final = "auto"
    FETCH: Final = "auto"
    SAMPLE_FETCH: Final = "stream"
    CALIBRATION_TOKENS: Final = 20_000
    CALIBRATION_STEPS: Final = 45
    BLIND_PAIRS: Final = 24
    BLIND_PREFERENCES: Final = 12
    BLIND_CHARACTERS: Final = 400
    BLIND_PEOPLE: Final = 10
    ENDPOINT_REQUESTS: Final = 600
    ENDPOINT_TOKENS: Final = 200_000
    ENDPOINT_TOLERANCE: Final = 0.002
    ENDPOINT_ALPHA: Final = 0.01
    ENDPOINT_CONCURRENCY: Final = 2
    ENDPOINT_TIMEOUT: Final = 120.0
