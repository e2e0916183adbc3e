//! What askers hear of messages that upstreams have sent, and of answers made here.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use proptest::prelude::*;

use super::*;
use crate::dns::{Reading, UDP_PAYLOAD};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn a(owner: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, 7))))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(name("ns.test."), name("admin.test."), 7, 1, 1, 1, minimum);
    Record::from_rdata(name("test."), ttl, RData::SOA(data))
}

fn message(question: &Question) -> Message {
    let mut message = Message::response(0x7777, OpCode::Query);
    message.metadata.authentic_data = true;
    message.metadata.authoritative = true;
    message.add_query(query(question));
    message
}

fn read(message: &Message, question: &Question) -> Kept {
    Kept::read(message.to_vec().unwrap(), question).unwrap()
}

/// An answer with one address.
pub(in crate::client::dns) fn answer_for(question: &Question, ttl: u32) -> Kept {
    let mut message = message(question);
    message.add_answer(a(&question.name.to_ascii(), ttl));
    read(&message, question)
}

fn question(text: &str) -> Question {
    Question::new(&name(text), RecordType::A)
}

/// A query as it comes, with EDNS of a size where there is one.
fn asked(text: &str, edns: Option<u16>, change: impl Fn(&mut Message)) -> Asked {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), RecordType::A));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size).set_version(0);
        message.set_edns(edns);
    }
    change(&mut message);
    match Reading::of(&message.to_vec().unwrap()) {
        Reading::Lookup(asked) => asked,
        other @ (Reading::Refuse(_) | Reading::Silence) => panic!("{other:?}"),
    }
}

fn encoded(kept: &Kept, asked: &Asked, age: u32) -> Message {
    let bytes = kept.encode(asked, age, asked.udp_limit).unwrap();
    assert!(bytes.len() <= asked.udp_limit);
    Message::from_vec(&bytes).unwrap()
}

#[test]
fn answer_has_the_number_bits_and_capitals_of_whoever_asks() {
    let kept = answer_for(&question("www.example.test."), 300);
    let asked = asked("wWw.eXample.TEST.", None, |_| {});
    let answer = encoded(&kept, &asked, 100);
    assert_eq!(answer.metadata.id, 0x1234);
    assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
    assert!(!answer.metadata.authoritative && !answer.metadata.truncation);
    assert!(!answer.metadata.authentic_data, "nobody asked about it");
    assert!(answer.edns.is_none());
    assert!(answer.queries[0].name().eq_case(&name("wWw.eXample.TEST.")));
    assert!(answer.answers[0].name.eq_case(&name("wWw.eXample.TEST.")));
    assert_eq!(answer.answers[0].ttl, 200);
    assert_eq!(encoded(&kept, &asked, 500).answers[0].ttl, 0);
}

#[test]
fn bits_about_dnssec_are_passed_on() {
    let kept = answer_for(&question("a.test."), 300);
    let told = |change: &dyn Fn(&mut Message), edns| {
        let metadata = encoded(&kept, &asked("a.test.", edns, change), 0).metadata;
        (metadata.authentic_data, metadata.checking_disabled)
    };
    assert_eq!(told(&|_| {}, Some(1232)), (false, false));
    assert_eq!(
        told(&|query| query.metadata.authentic_data = true, None),
        (true, false)
    );
    assert_eq!(
        told(&|query| query.metadata.checking_disabled = true, None),
        (false, true)
    );
    let wants = |query: &mut Message| {
        if let Some(edns) = &mut query.edns {
            edns.set_dnssec_ok(true);
        }
    };
    assert_eq!(told(&wants, Some(1232)), (true, false));
    let signed = asked("a.test.", Some(1232), wants);
    assert!(Question::of(&signed).dnssec_ok);
    let edns = encoded(&kept, &signed, 0).edns.unwrap();
    assert!(edns.flags().dnssec_ok);
}

#[test]
fn opt_record_is_the_upstreams_to_us_and_ours_to_those_who_speak_edns() {
    let asked_for = question("a.test.");
    let mut message = message(&asked_for);
    message.add_answer(a("a.test.", 60));
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_version(0);
    message.set_edns(edns);
    let kept = read(&message, &asked_for);
    assert!(kept.message().unwrap().edns.is_none());
    assert!(
        encoded(&kept, &asked("a.test.", None, |_| {}), 0)
            .edns
            .is_none()
    );
    let edns = encoded(&kept, &asked("a.test.", Some(512), |_| {}), 0).edns;
    assert_eq!(edns.map(|edns| edns.max_payload()), Some(UDP_PAYLOAD));
}

#[test]
fn opt_record_before_others_takes_its_section_with_it() {
    let asked_for = question("a.test.");
    let mut message = message(&asked_for);
    message.add_answer(a("a.test.", 60));
    let mut bytes = message.to_vec().unwrap();
    // OPT, then an address that points to the question.
    bytes.extend([0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]);
    bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 8]);
    bytes[11] = 2;
    let kept = Kept::read(bytes, &asked_for).unwrap();
    let left = kept.message().unwrap();
    assert_eq!((left.answers.len(), left.additionals.len()), (1, 0));
    // The upper bits of the code stand in the OPT record.
    assert_eq!(u16::from(kept.code()), 16);
}

#[test]
fn opt_record_that_would_be_passed_on_is_refused() {
    let asked_for = question("a.test.");
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    // Two of them, or one among the answers.
    for (at, count, opts) in [(11, 2, 2), (7, 1, 1)] {
        let mut bytes = message(&asked_for).to_vec().unwrap();
        bytes.extend(opt.repeat(opts));
        bytes[at] = count;
        assert_eq!(Kept::read(bytes, &asked_for), Err(BadAnswer::Broken));
    }
}

#[test]
fn answer_that_is_kept_takes_no_more_than_its_bytes() {
    let asked_for = question("a.test.");
    let mut message = message(&asked_for);
    message.add_answer(a("a.test.", 60));
    let mut bytes = Vec::with_capacity(65_535);
    bytes.extend(message.to_vec().unwrap());
    let kept = Kept::read(bytes, &asked_for).unwrap();
    assert!(kept.memory() < 1_000, "{}", kept.memory());
}

#[test]
fn answer_that_is_too_long_is_cut_to_its_question() {
    let asked_for = question("many.test.");
    let mut message = message(&asked_for);
    for _ in 0..60 {
        message.add_answer(a("many.test.", 60));
    }
    let kept = read(&message, &asked_for);
    let short = encoded(&kept, &asked("MANY.test.", None, |_| {}), 0);
    assert!(short.metadata.truncation && short.answers.is_empty());
    assert!(short.queries[0].name().eq_case(&name("MANY.test.")));
    let short = encoded(&kept, &asked("many.test.", Some(600), |_| {}), 0);
    assert!(short.metadata.truncation && short.edns.is_some());
    let whole = encoded(&kept, &asked("many.test.", Some(1232), |_| {}), 0);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 60);
}

#[test]
fn answers_to_other_questions_are_refused() {
    let mut message = message(&question("a.test."));
    message.add_answer(a("a.test.", 60));
    let bytes = message.to_vec().unwrap();
    for other in ["b.test.", "a.a.test.", "test.", "."] {
        let outcome = Kept::read(bytes.clone(), &question(other));
        assert_eq!(outcome, Err(BadAnswer::OtherQuestion), "{other}");
    }
    let aaaa = Question::new(&name("a.test."), RecordType::AAAA);
    assert_eq!(
        Kept::read(bytes.clone(), &aaaa),
        Err(BadAnswer::OtherQuestion)
    );
    let cut = bytes[..bytes.len() - 1].to_vec();
    assert_eq!(
        Kept::read(cut, &question("a.test.")),
        Err(BadAnswer::Broken)
    );
}

#[test]
fn records_of_unknown_types_come_out_as_they_went_in() {
    let asked_for = Question::new(&name("a.test."), RecordType::from(65_300));
    let mut bytes = message(&asked_for).to_vec().unwrap();
    let record = [0xc0, 12, 0xff, 0x14, 0, 1, 0, 0, 0, 60, 0, 5, 1, 2, 3, 4, 5];
    bytes.extend(record);
    bytes[7] = 1;
    let kept = Kept::read(bytes, &asked_for).unwrap();
    assert_eq!(kept.lifetime(), Duration::from_secs(60));
    let asked = asked("a.test.", None, |query| {
        query.queries[0].query_type = RecordType::from(65_300);
    });
    let out = kept.encode(&asked, 0, 512).unwrap();
    assert!(out.ends_with(&record));
}

#[test]
fn answers_are_kept_for_as_long_as_their_records_say() {
    let asked_for = question("a.test.");
    let alias = || {
        let data = RData::CNAME(CNAME(name("b.test.")));
        Record::from_rdata(name("a.test."), 50, data)
    };
    type Change = Box<dyn Fn(&mut Message)>;
    let code = |code: ResponseCode| -> Change {
        Box::new(move |message| message.metadata.response_code = code)
    };
    let cases: Vec<(&str, Vec<Change>, u64)> = vec![
        (
            "one",
            vec![Box::new(|m| {
                m.add_answer(a("a.test.", 60));
            })],
            60,
        ),
        (
            "the least of two",
            vec![Box::new(|m| {
                m.add_answer(a("a.test.", 60)).add_answer(a("a.test.", 40));
            })],
            40,
        ),
        (
            "an alias that ends first",
            vec![Box::new(move |m| {
                m.add_answer(alias()).add_answer(a("b.test.", 60));
            })],
            50,
        ),
        (
            "a day at most",
            vec![Box::new(|m| {
                m.add_answer(a("a.test.", 1 << 20));
            })],
            86_400,
        ),
        (
            "no time to live",
            vec![Box::new(|m| {
                m.add_answer(a("a.test.", 1 << 31));
            })],
            0,
        ),
        (
            "nothing of the type",
            vec![Box::new(|m| {
                m.add_authority(soa(90, 30));
            })],
            30,
        ),
        (
            "nothing, by the SOA's own time",
            vec![Box::new(|m| {
                m.add_authority(soa(20, 30));
            })],
            20,
        ),
        (
            "an alias to nothing",
            vec![Box::new(move |m| {
                m.add_answer(alias()).add_authority(soa(90, 70));
            })],
            50,
        ),
        (
            "no such name",
            vec![
                code(ResponseCode::NXDomain),
                Box::new(|m| {
                    m.add_authority(soa(9000, 9000));
                }),
            ],
            300,
        ),
        (
            "no such name, without SOA",
            vec![code(ResponseCode::NXDomain)],
            0,
        ),
        (
            "the upstream's own fault",
            vec![code(ResponseCode::ServFail)],
            1,
        ),
    ];
    for (case, changes, seconds) in cases {
        let mut message = message(&asked_for);
        for change in changes {
            change(&mut message);
        }
        let lifetime = read(&message, &asked_for).lifetime();
        assert_eq!(lifetime, Duration::from_secs(seconds), "{case}");
    }
}

#[test]
fn made_answer_says_why_in_an_option() {
    let made = Made::empty(ResponseCode::NXDomain).because(BLOCKED, "ads.txt");
    let reply = Reply::Made(Box::new(made));
    assert!(reply.is_blocked());
    let asked = asked("a.test.", Some(1232), |_| {});
    let answer = Message::from_vec(&reply.encode(&asked, 1232).unwrap()).unwrap();
    let option = answer.edns.unwrap();
    let option = option.option(15.into()).unwrap();
    assert_eq!(Vec::<u8>::try_from(option).unwrap(), b"\0\x0fads.txt");
    // Text is UTF-8 (RFC 8914, section 2), also where it is cut.
    let made = Made::empty(ResponseCode::NXDomain).because(BLOCKED, format!("x{}", "é".repeat(99)));
    let answer = Message::from_vec(&made.encode(&asked, 1232).unwrap()).unwrap();
    let option = answer.edns.unwrap();
    let option = option.option(15.into()).unwrap();
    let text = Vec::<u8>::try_from(option).unwrap().split_off(2);
    assert_eq!(text, format!("x{}", "é".repeat(59)).as_bytes());
}

proptest! {
    /// Whatever an upstream says: it is refused, or can be given to whoever asks.
    #[test]
    fn any_message_is_refused_or_passed_on(
        tail in prop::collection::vec(any::<u8>(), 0..120),
        counts in prop::collection::vec(0_u8..3, 3),
        flip in any::<prop::sample::Index>(),
        edns in any::<bool>(),
    ) {
        let asked_for = question("a.test.");
        let mut bytes = message(&asked_for).to_vec().unwrap();
        bytes.extend(&tail);
        for (at, count) in [7, 9, 11].into_iter().zip(&counts) {
            bytes[at] = *count;
        }
        let mut other = bytes.clone();
        let index = flip.index(other.len());
        other[index] ^= 0x41;
        let asked = asked("a.test.", edns.then_some(1232), |_| {});
        for bytes in [bytes, other] {
            if let Ok(kept) = Kept::read(bytes, &asked_for) {
                for limit in [512, 65_535] {
                    let out = kept.encode(&asked, 7, limit).unwrap();
                    prop_assert!(out.len() <= limit);
                    prop_assert_eq!(&out[..2], &[0x12, 0x34]);
                }
            }
        }
    }
}
