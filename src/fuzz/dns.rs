//! What name servers say, and what lists of names hold.

use hickory_proto::rr::{Name, RecordType};

use crate::client::dns::{Kept, Question, Reply, Scope, is_listed, read_list};
use crate::dns::{Reading, UDP_PAYLOAD};

/// Reads `does the asker speak EDNS? (1) ‖ what an upstream says to a question for the addresses of a.test`, and gives it
/// to an asker.
///
/// # Panics
///
/// What is taken for an answer cannot be given, or not within what the asker takes.
pub fn dns_answer(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else {
        return;
    };
    let name = Name::from_ascii("a.test.").expect("a name");
    let question = Question::new(&name, RecordType::A);
    let Ok(kept) = Kept::read(bytes.to_vec(), &question) else {
        return;
    };
    let edns = first & 1 == 1;
    let query: &[u8] = if edns {
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01A\x04TEST\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00"
    } else {
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01A\x04TEST\x00\x00\x01\x00\x01"
    };
    let Reading::Lookup(asked) = Reading::of(query) else {
        panic!("the query is one");
    };
    let reply = Reply::Kept(kept.into(), u32::from(first));
    for limit in [asked.udp_limit, usize::from(u16::MAX)] {
        let out = reply.encode(&asked, limit).expect("it can be given");
        assert!(out.len() <= limit && limit <= usize::from(u16::MAX));
        // The question is the asker's.
        assert_eq!(out.get(12..24), query.get(12..24));
    }
    assert!(asked.udp_limit <= usize::from(UDP_PAYLOAD));
}

/// Reads a list of names.
///
/// # Panics
///
/// A name that it takes is none, or is not found when it is asked for.
pub fn dns_list(text: &[u8]) {
    let read = read_list(text, |entry| {
        let name = Name::from_ascii(entry.name).expect("a name");
        assert!(!name.is_root());
        let wide = entry.scope == Scope::Subdomains;
        assert!(is_listed(entry, entry.name));
        // A label more may be more than a name has.
        if entry.name.len() < 250 {
            assert_eq!(is_listed(entry, &format!("x.{}", entry.name)), wide);
        }
        true
    });
    assert!(read.is_ok(), "reading from memory does not fail");
}
