"""What we lock, ship and pass on: licences, bills of materials, known holes, and how a version is built and pushed."""
