//! A bottleneck in virtual time, and flows of others.
