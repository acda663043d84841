"""The roles inside containers of the backup image. Nothing on the host imports this package."""
