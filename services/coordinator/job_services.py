"""The job services as the coordinator commands them."""

from dataclasses import dataclass
from functools import cache

from shared.db.tables import JobKind
from shared.settings import get_settings
from shared.web.client import ServiceClient


@dataclass(frozen=True)
class Services:
    """Clients of the three job services."""

    generate: ServiceClient
    judge: ServiceClient
    train: ServiceClient

    @classmethod
    def from_settings(cls) -> "Services":
        s = get_settings()
        key = s.service_key.get_secret_value() if s.service_key else ""
        return cls._at(s.generate_url, s.judge_url, s.train_url, key)

    @classmethod
    @cache
    def _at(cls, generate: str, judge: str, train: str, key: str) -> "Services":
        return cls(*(ServiceClient(url, key) for url in (generate, judge, train)))

    def for_job(self, kind: JobKind) -> ServiceClient:
        match kind:
            case JobKind.generate:
                return self.generate
            case JobKind.judge:
                return self.judge
            case JobKind.train | JobKind.register | JobKind.prune:
                return self.train
