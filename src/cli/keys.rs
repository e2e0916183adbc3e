//! `adit keygen` and `adit pubkey`.

use std::io;
use std::path::Path;

use super::args::{KeygenArgs, PubkeyArgs};
use super::{Failure, print};
use crate::config::{read_key, read_key_from, write_key};
use crate::proto::SecretKey;

/// Makes a key. Into a file, where one is named, with the public key printed; else the secret key is printed.
pub(super) fn keygen(args: &KeygenArgs) -> Result<(), Failure> {
    let key = SecretKey::generate(&mut rand::rng());
    match &args.output {
        Some(path) => {
            write_key(path, &key, args.force)?;
            print(&key.public().to_string())
        }
        None => print(&key.to_base64()),
    }
}

/// Prints the public half of a key.
pub(super) fn pubkey(args: &PubkeyArgs) -> Result<(), Failure> {
    let key: SecretKey = if args.file == Path::new("-") {
        read_key_from(io::stdin().lock(), Path::new("standard input"))?
    } else {
        read_key(&args.file)?
    };
    print(&key.public().to_string())
}
