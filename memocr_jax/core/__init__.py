"""Used by every room: errors, the types that flow through a step, random streams, metrics, meshes,
processes."""
