"""Accounts, their API keys, limits and usage."""

from stockade.accounts.key_file import read_key_file, set_aside
from stockade.accounts.management import NewKey
from stockade.accounts.service import Accounts
from stockade.accounts.usage import EnhancedUsage

__all__ = ["Accounts", "EnhancedUsage", "NewKey", "read_key_file", "set_aside"]
