"""Updates of services that teams have changed."""
