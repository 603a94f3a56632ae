"""What developers and tests run around the service; nothing here is deployed."""
