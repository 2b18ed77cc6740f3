"""What every room may use: errors, the types that flow, random streams, metrics, meshes and processes."""
