"""Accounts, their API keys, limits and usage; and the people who own them."""

from stockade.accounts.barred import Barred, Departed
from stockade.accounts.inputs import SignUpClosed, UserLocked, WrongCredentials, WrongInput
from stockade.accounts.key_file import read_key_file, set_aside
from stockade.accounts.management import NewKey
from stockade.accounts.recovery import UsedUp
from stockade.accounts.service import Accounts
from stockade.accounts.sessions import csrf_token
from stockade.accounts.tokens import TokenExpired, TokenInvalid
from stockade.accounts.usage import EnhancedUsage

__all__ = [
    "Accounts",
    "Barred",
    "Departed",
    "EnhancedUsage",
    "NewKey",
    "SignUpClosed",
    "TokenExpired",
    "TokenInvalid",
    "UsedUp",
    "UserLocked",
    "WrongCredentials",
    "WrongInput",
    "csrf_token",
    "read_key_file",
    "set_aside",
]
