//! Sealed frames byte by byte.
