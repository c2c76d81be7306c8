"""Where sandboxes come from. `base` says what a backend must do; each folder beside it is one."""
