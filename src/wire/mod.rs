//! Bytes to meaning and back, without state: the wire format, drawn once.
