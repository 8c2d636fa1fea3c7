//! TLS to callers and to peers outside the mesh.
