"""What must outlive the server: accounts, keys, sandboxes, usage, builds. SQLite, or PostgreSQL by URL."""

from stockade.store.builds import BuildTable
from stockade.store.database import Database
from stockade.store.identity import server_id
from stockade.store.quotas import QuotaExceeded
from stockade.store.sandboxes import Page, SandboxTable
from stockade.store.secret_file import kept_secret
from stockade.store.usage import UsageTable

__all__ = ["BuildTable", "Database", "Page", "QuotaExceeded", "SandboxTable", "UsageTable", "kept_secret", "server_id"]
