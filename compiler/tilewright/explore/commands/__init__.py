"""The subcommands of `tilewright`, a file each."""
