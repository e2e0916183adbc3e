//! The handshake, frame by frame.
