"""Our own backends. Each is found through the entry-point group `deploy.backends`, like anybody else's."""
