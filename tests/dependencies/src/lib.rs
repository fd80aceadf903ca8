//! Empty: what matters is the manifest.
