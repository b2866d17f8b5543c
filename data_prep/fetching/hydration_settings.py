"""How hosts are treated while images are fetched from them: the settings of `data_prep.hydrate`."""

import dataclasses

from data_prep.fetching.fetch import FetchSettings

PACE = (
    *("threads", "requests_per_second", "host_concurrency", "backoff_seconds", "max_backoff_seconds"),
    *("max_retry_after_seconds", "seed", "agent", "contact"),
)
"""Settings that say how fast and as whom, and not what is taken: changing them asks for nothing again."""


class HydrationError(ValueError):
    """Nothing can be fetched at all; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class HydrationSettings(FetchSettings):
    """How hosts are treated; what one request may cost is in `FetchSettings`.

    Attributes:
        threads: Requests that run at the same time; each holds at most one image in memory. Ours.
        requests_per_second: Starts at one host; 0 for no limit. Ours.
        host_concurrency: Requests that run at one host at the same time. Ours: browsers open 6.
        max_attempts: For a URL whose failure may pass (time-outs, connections, 408, 425, 429, 5xx). Ours.
        backoff_seconds: Wait before the second attempt, doubled for each further one. Ours.
        max_backoff_seconds: The most that this grows to. Ours.
        max_retry_after_seconds: The most that a server's `Retry-After` is followed for. A 429 or 503 keeps the whole
            host waiting, for that or else for the back-off. Ours.
        seed: Of the jitter, which takes up to half of a back-off away.
    """

    threads: int = 32
    requests_per_second: float = 10.0
    host_concurrency: int = 4
    max_attempts: int = 4
    backoff_seconds: float = 2.0
    max_backoff_seconds: float = 120.0
    max_retry_after_seconds: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threads", "host_concurrency", "max_attempts"):
            if getattr(self, name) < 1:
                raise HydrationError(f"{name} is {getattr(self, name)}: expected 1 or more")
        for name in ("requests_per_second", "backoff_seconds", "max_backoff_seconds", "max_retry_after_seconds"):
            if not getattr(self, name) >= 0:
                raise HydrationError(f"{name} is {getattr(self, name)}: expected 0 or more")
