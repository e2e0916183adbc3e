//! The bytes of nfnetlink messages for nftables: attributes, batches, and the expressions that our rules need.
//!
//! ```text
//!  nlmsghdr: length(4) type(2) flags(2) sequence(4) port(4)      host byte order
//!  nfgenmsg: family(1) version(1) resource(2, big endian)
//!  attributes: length(2) type(2) payload, padded to 4            numbers inside are big endian
//! ```
//!
//! Source: linux/netfilter/nf_tables.h and nfnetlink.h; `struct nlmsghdr` and `struct nlattr` of linux/netlink.h.

/// Messages that the kernel takes as one transaction.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Family of the objects it is about.
    family: u8,
    /// Sequence number of the message that is written next.
    next: u32,
}

impl Batch {
    /// Begins a transaction about a family; its first message (the begin itself) has sequence number 1.
    pub(super) fn new(family: u8) -> Self {
        let mut batch = Self {
            bytes: Vec::with_capacity(4096),
            family,
            next: FIRST_SEQUENCE,
        };
        batch.message(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, |_| ());
        batch
    }

    /// Adds a message about an object, to be acknowledged by the kernel.
    pub(super) fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.message(
            (NFNL_SUBSYS_NFTABLES << 8) | kind,
            flags | NLM_F_ACK,
            self.family,
            0,
            body,
        );
    }

    /// Ends the transaction: the bytes, and the sequence numbers to be acknowledged.
    pub(super) fn finish(mut self) -> (Vec<u8>, std::ops::Range<u32>) {
        let acknowledged = FIRST_SEQUENCE + 1..self.next;
        self.message(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, |_| ());
        (self.bytes, acknowledged)
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        let sequence = self.next;
        self.next += 1;
        write_message(
            &mut self.bytes,
            kind,
            flags | NLM_F_REQUEST,
            sequence,
            family,
            resource,
            body,
        );
    }
}

/// A request to list all objects of a kind, of all families.
pub(super) fn dump_request(kind: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let kind = (NFNL_SUBSYS_NFTABLES << 8) | kind;
    write_message(
        &mut bytes,
        kind,
        NLM_F_REQUEST | NLM_F_DUMP,
        FIRST_SEQUENCE,
        0,
        0,
        |_| (),
    );
    bytes
}

fn write_message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    body: impl FnOnce(&mut Attributes<'_>),
) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    body(&mut Attributes::new(bytes));
    let length = (bytes.len() - start) as u32;
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Writes attributes into a message.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Attributes<'a> {
    /// Writes at the end of `bytes`.
    pub(super) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    pub(super) fn raw(&mut self, kind: u16, payload: &[u8]) {
        self.with(kind, |bytes| bytes.extend_from_slice(payload));
    }

    /// A text, with the zero byte that the kernel expects.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.with(kind, |bytes| {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        });
    }

    pub(super) fn number(&mut self, kind: u16, number: u32) {
        self.raw(kind, &number.to_be_bytes());
    }

    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.with(kind | NLA_F_NESTED, |bytes| {
            body(&mut Attributes::new(bytes))
        });
    }

    fn with(&mut self, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        body(self.bytes);
        // Everything written here is a name or a rule of ours: far below the 64 KiB that fit.
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }

    /// One expression of a rule.
    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Attributes<'_>)) {
        self.nested(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nested(NFTA_EXPR_DATA, body);
        });
    }

    /// Writes expressions in the order in which they are evaluated.
    pub(super) fn expressions(&mut self, expressions: &[Expression]) {
        for expression in expressions {
            expression.write(self);
        }
    }
}

/// What our rules are made of: each either lets the evaluation go on or ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads an interface's name or the family of the packet.
    Meta(u32),
    /// Loads the connection's state, status or mark.
    Ct(u32),
    /// Sets the packet's mark to what was loaded.
    SetMeta(u32),
    /// Sets the connection's mark to what was loaded.
    SetCt(u32),
    /// Loads of what kind the packet's destination is to this host (rtnetlink(7), `rtm_type`).
    DestinationKind,
    /// Loads this.
    Load(Vec<u8>),
    /// Loads bytes of the header behind the IP header.
    Transport {
        offset: u32,
        length: u32,
    },
    /// Loads bytes of the IP header.
    Network {
        offset: u32,
        length: u32,
    },
    /// Masks what was loaded.
    Mask(Vec<u8>),
    /// Goes on if what was loaded is (or is not) this.
    Compare {
        equal: bool,
        value: Vec<u8>,
    },
    Counter,
    Masquerade,
    Accept,
    Drop,
}

/// Loads bytes of a packet.
fn payload(to: &mut Attributes<'_>, base: u32, offset: u32, length: u32) {
    to.expression("payload", |data| {
        data.number(NFTA_PAYLOAD_DREG, NFT_REG_1);
        data.number(NFTA_PAYLOAD_BASE, base);
        data.number(NFTA_PAYLOAD_OFFSET, offset);
        data.number(NFTA_PAYLOAD_LEN, length);
    });
}

impl Expression {
    fn write(&self, to: &mut Attributes<'_>) {
        match self {
            Self::Meta(key) => to.expression("meta", |data| {
                data.number(NFTA_META_DREG, NFT_REG_1);
                data.number(NFTA_META_KEY, *key);
            }),
            Self::Ct(key) => to.expression("ct", |data| {
                data.number(NFTA_CT_DREG, NFT_REG_1);
                data.number(NFTA_CT_KEY, *key);
            }),
            Self::SetMeta(key) => to.expression("meta", |data| {
                data.number(NFTA_META_SREG, NFT_REG_1);
                data.number(NFTA_META_KEY, *key);
            }),
            Self::SetCt(key) => to.expression("ct", |data| {
                data.number(NFTA_CT_SREG, NFT_REG_1);
                data.number(NFTA_CT_KEY, *key);
            }),
            Self::DestinationKind => to.expression("fib", |data| {
                data.number(NFTA_FIB_DREG, NFT_REG_1);
                data.number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
                data.number(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
            }),
            Self::Load(value) => to.expression("immediate", |data| {
                data.number(NFTA_IMMEDIATE_DREG, NFT_REG_1);
                data.nested(NFTA_IMMEDIATE_DATA, |data| data.raw(NFTA_DATA_VALUE, value));
            }),
            Self::Network { offset, length } => {
                payload(to, NFT_PAYLOAD_NETWORK_HEADER, *offset, *length);
            }
            Self::Transport { offset, length } => {
                payload(to, NFT_PAYLOAD_TRANSPORT_HEADER, *offset, *length);
            }
            Self::Mask(mask) => to.expression("bitwise", |data| {
                data.number(NFTA_BITWISE_SREG, NFT_REG_1);
                data.number(NFTA_BITWISE_DREG, NFT_REG_1);
                data.number(NFTA_BITWISE_LEN, mask.len() as u32);
                data.nested(NFTA_BITWISE_MASK, |value| value.raw(NFTA_DATA_VALUE, mask));
                data.nested(NFTA_BITWISE_XOR, |value| {
                    value.raw(NFTA_DATA_VALUE, &vec![0; mask.len()])
                });
            }),
            Self::Compare { equal, value } => to.expression("cmp", |data| {
                data.number(NFTA_CMP_SREG, NFT_REG_1);
                data.number(NFTA_CMP_OP, if *equal { NFT_CMP_EQ } else { NFT_CMP_NEQ });
                data.nested(NFTA_CMP_DATA, |data| data.raw(NFTA_DATA_VALUE, value));
            }),
            Self::Counter => to.expression("counter", |_| ()),
            Self::Masquerade => to.expression("masq", |_| ()),
            Self::Accept => Self::verdict(to, NF_ACCEPT),
            Self::Drop => Self::verdict(to, NF_DROP),
        }
    }

    fn verdict(to: &mut Attributes<'_>, code: u32) {
        to.expression("immediate", |data| {
            data.number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            data.nested(NFTA_IMMEDIATE_DATA, |data| {
                data.nested(NFTA_DATA_VERDICT, |verdict| {
                    verdict.number(NFTA_VERDICT_CODE, code)
                });
            });
        });
    }
}

/// Splits bytes from the kernel into attributes: kind without its flags, and payload. Ends at the first malformed one.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind =
            u16::from_ne_bytes([header[2], header[3]]) & !(NLA_F_NESTED | NLA_F_NET_BYTEORDER);
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of that kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, payload)| (found == kind).then_some(payload))
}

/// The text of the first attribute of that kind.
pub(super) fn find_text(bytes: &[u8], kind: u16) -> Option<&str> {
    let payload = find(bytes, kind)?;
    std::str::from_utf8(payload.strip_suffix(&[0]).unwrap_or(payload)).ok()
}

/// The number of the first attribute of that kind.
pub(super) fn find_number(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(find(bytes, kind)?.try_into().ok()?))
}

pub(super) const FIRST_SEQUENCE: u32 = 1;

pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_F_NET_BYTEORDER: u16 = 0x4000;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Family of our table: rules for IPv4 and IPv6 in one.
pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
pub(super) const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
pub(super) const NFT_MSG_GETTABLE: u16 = 1;
pub(super) const NFT_MSG_GETCHAIN: u16 = 4;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
pub(super) const NFT_MSG_GETRULE: u16 = 7;

pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFT_TABLE_F_OWNER: u32 = 0x2;

pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;

pub(super) const NF_INET_PRE_ROUTING: u32 = 0;
pub(super) const NF_INET_FORWARD: u32 = 2;
pub(super) const NF_INET_LOCAL_OUT: u32 = 3;
pub(super) const NF_INET_POST_ROUTING: u32 = 4;

pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;

const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;

pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
pub(super) const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;

const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;

const NFTA_META_DREG: u16 = 1;
pub(super) const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
pub(super) const NFT_META_MARK: u32 = 3;
pub(super) const NFT_META_L4PROTO: u32 = 16;
pub(super) const NFT_META_IIFNAME: u32 = 6;
pub(super) const NFT_META_OIFNAME: u32 = 7;
pub(super) const NFT_META_NFPROTO: u32 = 15;

const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
pub(super) const NFT_CT_MARK: u32 = 3;
pub(super) const NFT_CT_STATE: u32 = 0;
pub(super) const NFT_CT_DIRECTION: u32 = 1;
pub(super) const NFT_CT_STATUS: u32 = 2;

const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;

const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;

const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;

const NFTA_CMP_SREG: u16 = 1;
pub(super) const NFTA_CMP_OP: u16 = 2;
pub(super) const NFTA_CMP_DATA: u16 = 3;
pub(super) const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;

const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attribute_is_length_kind_payload_and_padding() {
        let mut bytes = Vec::new();
        let mut to = Attributes::new(&mut bytes);
        to.text(1, "ab");
        to.number(2, 7);
        let expected = [
            &7_u16.to_ne_bytes()[..],
            &1_u16.to_ne_bytes(),
            b"ab\0\0",
            &8_u16.to_ne_bytes(),
        ];
        let expected = [&expected.concat()[..], &2_u16.to_ne_bytes(), &[0, 0, 0, 7]].concat();
        assert_eq!(bytes, expected);
        assert_eq!(find_text(&bytes, 1), Some("ab"));
        assert_eq!(find_number(&bytes, 2), Some(7));
        assert_eq!(find(&bytes, 3), None);
    }

    #[test]
    fn batch_is_framed_and_numbers_its_messages() {
        let mut batch = Batch::new(NFPROTO_INET);
        batch.push(NFT_MSG_DELTABLE, 0, |to| to.text(NFTA_TABLE_NAME, "t"));
        batch.push(NFT_MSG_DELTABLE, 0, |to| to.text(NFTA_TABLE_NAME, "u"));
        let (bytes, acknowledged) = batch.finish();
        assert_eq!(acknowledged, 2..4);
        let mut kinds = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            kinds.push((
                u16::from_ne_bytes([rest[4], rest[5]]),
                u32::from_ne_bytes(rest[8..12].try_into().unwrap()),
            ));
            rest = &rest[length..];
        }
        assert_eq!(kinds, [(0x10, 1), (0xa02, 2), (0xa02, 3), (0x11, 4)]);
        // The begin names the subsystem in its resource field, big endian.
        assert_eq!(bytes[16..20], [0, 0, 0, 10]);
    }

    #[test]
    fn masked_comparison_is_written_as_the_kernel_reads_it() {
        let mut bytes = Vec::new();
        let mut to = Attributes::new(&mut bytes);
        to.expressions(&[Expression::Mask(vec![255, 255, 0, 0]), Expression::Drop]);
        let names: Vec<_> = attributes(&bytes)
            .map(|(_, element)| find_text(element, NFTA_EXPR_NAME).unwrap())
            .collect();
        assert_eq!(names, ["bitwise", "immediate"]);
        let (_, bitwise) = attributes(&bytes).next().unwrap();
        let data = find(bitwise, NFTA_EXPR_DATA).unwrap();
        assert_eq!(find_number(data, NFTA_BITWISE_LEN), Some(4));
        assert_eq!(
            find(find(data, NFTA_BITWISE_MASK).unwrap(), NFTA_DATA_VALUE),
            Some(&[255, 255, 0, 0][..])
        );
        assert_eq!(
            find(find(data, NFTA_BITWISE_XOR).unwrap(), NFTA_DATA_VALUE),
            Some(&[0; 4][..])
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_without_panic_and_in_bounded_time(bytes: Vec<u8>) {
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }

        #[test]
        fn written_attributes_are_read_back(list in proptest::collection::vec((0_u16..100, proptest::collection::vec(any::<u8>(), 0..40)), 0..10)) {
            let mut bytes = Vec::new();
            let mut to = Attributes::new(&mut bytes);
            for (kind, payload) in &list {
                to.raw(*kind, payload);
            }
            let read: Vec<_> = attributes(&bytes).map(|(kind, payload)| (kind, payload.to_vec())).collect();
            prop_assert_eq!(read, list);
        }
    }
}
