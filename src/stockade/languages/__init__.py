"""The languages that come with Stockade: data only, a TOML file each. `docs/languages.md` explains every key."""
