//! Bytes to meaning and back, without state: the wire format, drawn once.
//!
//! # The protocol, byte by byte
//!
//! Version 1.0. Numbers are big-endian, lengths are bytes. A client and a server speak over any
//! number of **lanes**; a lane is whatever carries frames: a TCP connection, with or without TLS,
//! which keeps them in order, or a pair of UDP addresses, which keeps nothing. All security is in
//! what is drawn here; a lane adds none that counts.
//!
//! A WebSocket lane carries the bytes of a stream lane in binary messages (RFC 6455, version 13, no extension, no
//! subprotocol), on TLS or TCP; where a message begins and ends means nothing. Before that the client asks by
//! HTTP/1.1 for the path that both ends were told.
//!
//! A TLS lane is TLS 1.3, X25519MLKEM768 first, ALPN `http/1.1`, SNI where the server is a name; under a WebSocket that is a reverse proxy's, 1.2 does as well. What the
//! client makes of the certificate is its own affair. Bytes of a handshake and of a session are given in
//! hexadecimal in `src/proto/session/tests/vectors.rs`, to check another implementation by.
//!
//! ## Frames on stream lanes
//!
//! ```text
//!  0       4      5                          4 + length
//! ┌────────┬──────┬──────────────────────────┐
//! │ length │ type │ body                     │   length covers type and body
//! └────────┴──────┴──────────────────────────┘
//! ```
//!
//! `length` is at most [`MAX_FRAME_PREAUTH`] (2,048) until the peer is authenticated, then
//! [`MAX_FRAME`] (66,000). Whoever receives more, a length of 0, or an unknown type, closes the
//! lane.
//!
//! | type | frame | from | sealed |
//! |---|---|---|---|
//! | `01` | HandshakeInit | client | by Noise |
//! | `02` | HandshakeReply | server | by Noise |
//! | `03` | Challenge | server | no |
//! | `04` | Sealed | both | by the session |
//! | `05` | Join | client | by the session |
//!
//! ## Handshake
//!
//! `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s` (Noise revision 34), with an ML-KEM (FIPS 203) exchange
//! in the payloads. Either half alone keeps a session secret.
//!
//! ```text
//!        ┌────────┬────┬───────┬──────┬──────────────────────────────────────────────────┐
//!  Init  │ length │ 01 │ major │ kind │ e (32) ‖ AEAD{s} (48) ‖ AEAD{payload 1}          │
//!        ├────────┼────┼───────┼──────┼──────────────────────────────────────────────────┤
//!  Reply │ length │ 02 │ major │ kind │ e (32) ‖ AEAD{payload 2}                         │
//!        ├────────┼────┼───────┼──────┼──────────────────────────────────────────────────┤
//!  Chal. │ length │ 03 │ major │ kind │ challenge (32)                                   │
//!        └────────┴────┴───────┴──────┴──────────────────────────────────────────────────┘
//!
//!  AEAD{x}: x sealed by Noise, and its tag (16)
//!
//!  payload 1: minor (1) ‖ capabilities (4) ‖ AEADs spoken (1) ‖ of them fast (1) ‖ instance (8) ‖
//!             time (8) ‖ 0 or 1 ‖ challenge (32, after a 1) ‖ encapsulation key ‖
//!             invitation (16, with capability bit 1) ‖ …
//!  payload 2: status (1) ‖ minor (1) ‖ capabilities (4) ‖ session (8) ‖ AEAD (1) ‖ ciphertext ‖ …
//! ```
//!
//!  - **major** is 1. It and **kind** stand in the clear because they say how to read the rest; the
//!    Noise prologue binds them: `"adit handshake" ‖ major ‖ kind ‖ context`.
//!  - **kind**: `01` a new session with ML-KEM-768 (encapsulation key 1,184, ciphertext 1,088);
//!    `02` the same with ML-KEM-1024 (1,568, 1,568), stream lanes only; `11`, `12` the next epoch
//!    of a session, which travels sealed (below) and never in a frame of its own. The context is
//!    empty for the first two, `session (8) ‖ epoch (8)` for the others.
//!  - **psk** is the pre-shared key of that client, 32 zero bytes if there is none. The server sets
//!    it after message 1 has told it who calls.
//!  - **minor**, **capabilities** and `…`: what later versions of the same major add. `…` is ignored.
//!    Capability bit 0: flows may be relayed (below). The client says it if all its lanes will be
//!    stream lanes, the server if it ends the flows of its clients itself. Bit 1, the client's alone: it wants to be
//!    enrolled (below), and names the invitation. Unknown bits are ignored.
//!  - **AEADs**: bit 0 AES-256-GCM, bit 1 ChaCha20-Poly1305, bit 2 AES-128-GCM, bit 3
//!    XChaCha20-Poly1305; in payload 2 a number, bit + 1. The server chooses: an AES both have in
//!    hardware, else ChaCha20-Poly1305, else what both speak.
//!  - **instance** is a random name of this run of the client. **time** is microseconds since 1970.
//!  - An X25519 public key of low order (a shared secret of zeros) is refused, by either end.
//!  - **status** is 0; otherwise the server knows the client and refuses it, `minor` and
//!    `capabilities` end the payload, and the number says why: 1 version, 2 no common AEAD, 3
//!    invalid encapsulation key, 4 the client was one and has been revoked.
//!
//! **Replay.** The server remembers the newest time of every (key, instance). A message 1 that is
//! not newer, or older than the server's start, is answered by a Challenge: 32 bytes, random ones
//! that belong to the connection on a stream lane (two challenges a connection, no more), a MAC on
//! a datagram lane (below). The client makes a new message 1 that carries them; it is taken unless
//! its time is that of the one taken last. Of a client that is refused as revoked nothing is remembered. A handshake changes
//! nothing about a living session until its first sealed frame opens.
//!
//! **Silence.** Whatever else is wrong with a message 1 (length, version, kind, key, tag, an
//! unknown client) is answered by nothing at all, so that a stranger learns nothing. A client
//! learns of a major version it does not speak from the answer's clear byte, if there is an answer.
//!
//! ## Keys
//!
//! ```text
//! secret      = HKDF-Extract(salt: h, k1 ‖ k2 ‖ ML-KEM shared secret)          RFC 5869, SHA-256
//! client key  = HKDF-Expand(secret, "adit key" ‖ 00 ‖ AEAD number, key length)
//! server key  = HKDF-Expand(secret, "adit key" ‖ 01 ‖ AEAD number, key length)
//! ```
//!
//! h is Noise's handshake hash, k1 and k2 what its `Split()` gives, k1 the initiator's at both
//! ends. Noise's own transport messages are not used. The AEAD's number is 1 AES-256-GCM, 2
//! ChaCha20-Poly1305, 3 AES-128-GCM (a key of 16 bytes, the others 32), 4 XChaCha20-Poly1305.
//!
//! ## Sealed frames
//!
//! ```text
//!  0        4    5       6         14     15                         length − 12   4 + length
//! ┌────────┬────┬───────┬─────────┬──────┬───────────────────────────┬─────────────┐
//! │ length │ 04 │ epoch │ counter │ type │ body                      │ tag         │
//! └────────┴────┴───────┴─────────┴──────┴───────────────────────────┴─────────────┘
//!  └──────────── AAD ────────────┘ └────────── sealed ──────────────┘
//!
//!  nonce = lane id (4) ‖ counter (8)        XChaCha20: 12 zero bytes ‖ lane id ‖ counter
//! ```
//!
//! **epoch** is the low byte of the epoch's number, from 0. **counter** is per lane, direction and
//! epoch, from 0, strictly increasing on a stream lane. The lane's id is not written: each end
//! knows over which lane a frame came. The lane of the handshake is 0; the client numbers the
//! others upwards and never uses a number twice in a session.
//!
//! A packet, as the commonest body, starts [`PACKET_HEADROOM`] (26) bytes into its frame:
//!
//! ```text
//!  14     15              23        24            26
//! ┌──────┬───────────────┬─────────┬─────────────┬──────────────┐
//! │  01  │ source number │ offload │ segment size│ IP packet    │
//! └──────┴───────────────┴─────────┴─────────────┴──────────────┘
//!  offload: bits 0-1 none, tcp, udp; bit 2 transport checksum partial; the others 0.
//!  segment size: bytes of payload per segment; 0 if and only if bits 0-1 are.
//! ```
//!
//! The **source number** counts the packets of one direction from 0, over all lanes and epochs. A
//! number is delivered once; one that lies 32,704 or more behind the highest is taken for seen.
//!
//! The client speaks first: the server sends nothing sealed, Config included, until a frame of the
//! client has opened, since message 1 may be a copy. So the client sends a Ping as soon as it has
//! the Reply.
//!
//! ## Packets
//!
//! A packet is IPv4 or IPv6 and as long as its own length field says. Without segmentation it is at
//! most the MTU that Config gave. With a **partial** checksum what stands in the TCP or UDP
//! checksum field means nothing, and whoever hands the packet on computes it; otherwise it is right.
//!
//! A super-packet (`tcp` or `udp`) stands for its segments, each of which but the last carries
//! segment-size bytes of its payload. The receiver believes none of it, and drops a super-packet
//! unless: it is TCP or UDP as it says; it is no fragment and has no IP options or extension
//! headers; its transport header is whole, a UDP length covers the payload; its checksum is partial;
//! it has no SYN, RST or URG; the segment size is at least 1 and at most the MTU less the headers;
//! and it makes at most 64 segments. The same shape is asked of an ordinary packet with a partial
//! checksum. Who cuts it computes lengths, identifiers, sequence numbers, flags and checksums anew;
//! no header of a virtual device ever crosses.
//!
//! | type | body | from |
//! |---|---|---|
//! | `01` Packet | as drawn | both |
//! | `02` Ping | time (8), opaque | both |
//! | `03` Pong | time (8) of the ping | both |
//! | `04` Config | serial (4) ‖ fields | server |
//! | `05` ConfigOk | serial (4) | client |
//! | `06` Close | reason (1) | both |
//! | `07` RekeyAsk | none | server |
//! | `08` RekeyInit | epoch (1) ‖ Noise message 1 | client |
//! | `09` RekeyReply | epoch (1) ‖ Noise message 2 | server |
//! | `0A` Join | none; in a Join frame only | client |
//! | `0B` JoinOk | challenge (16) | server |
//! | `0C` JoinEcho | challenge (16) | client |
//! | `0D` Enrol | token (32) | client that wants to be enrolled |
//! | `0E` PathChallenge | challenge (16) | both, datagram lanes only |
//! | `0F` PathResponse | challenge (16) of the PathChallenge | both, datagram lanes only |
//! | `10` FlowOpen | flow (4) ‖ address ‖ port (2) ‖ window (4) | client, stream lanes only |
//! | `11` FlowData | flow (4) ‖ offset (8) ‖ bytes | both, stream lanes only |
//! | `12` FlowCredit | flow (4) ‖ received (8) ‖ limit (8) ‖ 0 or 1 (again) | both, stream lanes only |
//! | `13` FlowFin | flow (4) ‖ offset (8) | both, stream lanes only |
//! | `14` FlowReset | flow (4) ‖ reason (1) | both, stream lanes only |
//! | `15` Part | serial (1) ‖ 0 or 1 ‖ half of a control frame | both, datagram lanes only |
//! | `16` Probe | serial (4) ‖ zeros | both, datagram lanes only |
//! | `17` ProbeOk | serial (4) of the Probe | both, datagram lanes only |
//! | `18` Enrolled | verdict (1) ‖ name | server, to such a client |
//! | `20` Repair | first (4) ‖ span (2) ‖ key (2) ‖ parity | both, datagram lanes only |
//! | `21` Report | as drawn below | both, datagram lanes only |
//! | `98` Beside | lane (4): the first of the group | client, stream lanes only |
//!
//! An unknown type, reserved ones included, is skipped if its top bit is set, else it closes the
//! session. So does a control frame that is malformed or that the other end may not send.
//!
//! **Config** fields are `tag (1) ‖ length (2) ‖ value`; unknown tags are skipped. 1 IPv4 address
//! and prefix (5), 2 IPv6 address and prefix (17), 3 IPv4 gateway (4), 4 IPv6 gateway (16), 5 a
//! resolver (4 or 16, at most 8 times), 6 MTU (2, 1280 to 9000), 7 a record of a name in words (`nas.home A 192.168.1.5`,
//! fields of 1,536 bytes at most in all; one that the client does not understand is left out). The server sends Config once the
//! client's first sealed frame has opened, and again on every new lane until ConfigOk names its
//! serial.
//!
//! **Close** reasons: 1 shutting down, 2 superseded, 3 revoked, 4 no free address, 5 too many
//! instances, 6 protocol error, 7 idle; others are taken as they are. Close has no answer: both
//! ends have forgotten the session then.
//!
//! **Beside** says that this lane and the others that name the same first lane carry packets side by side: what is
//! dear may come on several of them, with one source number. A server sends packets on the lane that was confirmed
//! last, or, if that one stands in a group, on the lanes of the group; a lane without a word is alone. One that does
//! not know the type skips it, and sends on the newest.
//!
//! **Ping** may be sent on any lane at any time, and is answered on the same one.
//!
//! ## Relayed flows
//!
//! Where both ends said so in the handshake (capability bit 0), the client may have the server open TCP connections, and
//! no packets cross for them. Otherwise these frames are of an unknown type.
//!
//! ```text
//!  client                                              server
//!    Open  flow, destination, window ───────────────▶  connect(2)
//!          ◀─────────────────────── Credit (received 0, limit)      or Reset, with the reason
//!    Data, Fin ─────────────────────────────────────▶
//!          ◀───────────────────────────────────── Data, Fin
//!    Credit ◀───────────────────────────────────────▶ Credit
//! ```
//!
//!  - **flow** is the client's number, greater than that of every flow it opened before in the session.
//!  - **address** is 4 ‖ IPv4 (4) or 6 ‖ IPv6 (16). One of the session's own networks is not allowed: packets go there.
//!  - **offset** counts the bytes of one direction from 0. What arrived before is trimmed; what lies beyond a gap is
//!    dropped, and asked for by a Credit whose last byte is 1: it is then sent again from **received** on.
//!  - **limit** is the offset that no byte may reach; the client's first is the window of its Open, and the client sends
//!    none before the first Credit. **received** counts a Fin as one more than the bytes; Fin needs no room.
//!  - Whoever sends keeps what was not acknowledged. When another lane takes packets, each end says Credit there
//!    for every flow, and sends again what is not acknowledged, Opens first, in the order of their numbers.
//!  - A frame about a flow that its receiver does not know, and that is no Reset, is answered by a Reset (unknown).
//!  - **reason**: 1 aborted, 2 refused, 3 host unreachable, 4 network unreachable, 5 timed out, 6 not allowed, 7 too many
//!    flows or too much that they hold, 8 unknown, 9 violation (data beyond the limit, a second end); others are taken as 1.
//!  - Open from the server, and a malformed frame, close the session. Flows end with their session.
//!
//! ## Enrolment
//!
//! A server invites by a link that holds its key and addresses and a token T of 32 random bytes. It keeps
//! `id = HKDF-Expand(HKDF-Extract(salt: "adit invitation", T), "id", 16)` and `SHA-256("adit invitation" ‖ T)`, and not T.
//!
//! ```text
//!  client                                              server
//!    Init  capability bit 1, id, a new key ─────────▶  an id it knows, live or not?
//!          ◀───────────────────────────────────────── Reply: a guest session
//!    Enrol T ───────────────────────────────────────▶  compares, writes down, in one step
//!          ◀───────────────────────── Enrolled  verdict, and the client's name if it is 0
//! ```
//!
//!  - An unknown id is treated as if it were none: silence, unless the key is a client's.
//!  - A **guest session** has no pre-shared key, is given no Config, and ends after 5 s. Of a guest, only Enrol and what
//!    keeps a lane up (Ping, Pong, PathChallenge, PathResponse, Probe, ProbeOk, Report, Close) is legal; all else closes it.
//!  - T crosses only inside the seal, in the client's frames: message 1 may be a copy, and is half of the key exchange.
//!  - **verdict**: 0 enrolled, also when the same key comes again; 1 used by another key; 2 ended; 3 the token is not the
//!    invitation's; 4 withdrawn; 5 the key is a client's already; 6 too many clients; 7 not written down; 8 the name is
//!    another's by now.
//!  - The client closes the session and begins an ordinary one with its new key.
//!
//! ## Epochs
//!
//! After 120 s, or 2^32 frames or 2^38 bytes sealed by one end, the client begins the next epoch (the
//! server, which may have sealed more, asks it to by RekeyAsk): the handshake once more, kind `11` or
//! `12`, inside RekeyInit and RekeyReply, whose epoch byte is the new epoch's.
//! Payload 1 has no AEADs and no challenge (zero), and its time is not one but counts the client's
//! attempts in this session from 1: the server ignores an attempt overtaken by a later one. Payload
//! 2 repeats session and AEAD. The client seals with the new keys once it has the reply, the server
//! once it has opened a frame sealed with them. From then on the former keys open for twice the
//! largest lane delay, 1 s to 30 s. 2^36 frames that do not open end the session.
//!
//! ## Joining a lane
//!
//! ```text
//!  0        4    5       6         14     18     19     35
//! ┌────────┬────┬───────┬─────────┬──────┬──────┬──────┐
//! │ length │ 05 │ epoch │ session │ lane │  0A  │ tag  │      counter 0 of the new lane
//! └────────┴────┴───────┴─────────┴──────┴──────┴──────┘
//!  └─────────────── AAD ────────────────┘
//! ```
//!
//! The first frame on a fresh connection. The server opens it with the session's keys and refuses,
//! by silence, a lane id that was taken before or lies 64 or more below the highest; so a copy is
//! worth nothing. It answers JoinOk on the new lane, and sends packets there only after JoinEcho has come back. A
//! session has at most 16 lanes.
//!
//! A client that reconnects writes Join and HandshakeInit in one flight. A server that knows the
//! session answers JoinOk and drops the Init; one that does not drops the Join and answers the
//! Init.
//!
//! ## Datagrams
//!
//! A datagram is one frame, `type ‖ body`, and never more. IP and UDP headers are not counted here.
//!
//! ```text
//!             0    1       2      3        7         11     12                     length − 16
//!            ┌────┬───────┬──────┬────────┬─────────┬──────┬──────────────────────┬──────────┐
//!  Sealed    │ 04 │ epoch │ lane │ handle │ counter │ type │ body                 │ tag      │
//!            └────┴───────┴──────┴────────┴─────────┴──────┴──────────────────────┴──────────┘
//!             └──────────────── AAD ──────────────┘ └────────── sealed ─────────┘
//!
//!             0    1       2         10     14     15                 1184
//!            ┌────┬───────┬─────────┬──────┬──────┬──────────────────┬──────┐
//!  Join      │ 05 │ epoch │ session │ lane │  0A  │ zeros            │ tag  │   1,200 bytes
//!            └────┴───────┴─────────┴──────┴──────┴──────────────────┴──────┘
//!             └─────────── AAD ──────────┘ └──────── sealed ────────┘
//!
//!            ┌────┬───────┬──────┬─────────────────┬───────────┬───────────┐
//!  Init      │ 01 │ major │ kind │ Noise message 1 │ mac1 (16) │ mac2 (16) │     1,339 or 1,371
//!            ├────┼───────┼──────┼─────────────────┼───────────┴───────────┘
//!  Reply     │ 02 │ major │ kind │ Noise message 2 │                             1,154
//!            ├────┼───────┼──────┼─────────────────┤
//!  Challenge │ 03 │ major │ kind │ challenge (32)  │                             35
//!            ├────┼───────┴──────┼─────────────────┼────────────┐
//!  Cookie    │ 06 │ nonce (24)   │ cookie (16)     │ tag (16)   │                57
//!            └────┴──────────────┴─────────────────┴────────────┘
//! ```
//!
//! **Sealed.** **lane** is the low byte of the lane's id, **handle** the low half of the session's:
//! a client never has two living lanes with the same low byte, a server no two sessions with the
//! same handle. **counter** is as on a stream lane but has 32 bits, of which the last is not used:
//! a lane that has sealed 2^32 − 1 datagrams waits for the next epoch, which is begun at three
//! quarters of that. The nonce is the same, lane id (4) ‖ counter (8). Counters may come in any order,
//! each once; 32,704 behind the highest are too old to tell.
//!
//! A packet has a header of 5 bytes, so a packet of 1,400 makes a datagram of 1,433:
//!
//! ```text
//!  11     12                  16        17
//! ┌──────┬───────────────────┬─────────┬───────────────────────┐
//! │  01  │ source number (4) │ offload │ IP packet, or a piece │
//! └──────┴───────────────────┴─────────┴───────────────────────┘
//!  offload: bit 2 transport checksum partial; bit 5 kept for repair; bit 6 first piece, bit 7 last
//!  piece; the others 0.
//! ```
//!
//! The source number is its low half; the other half is what brings it nearest to the number after
//! the highest known. A super-packet never goes into datagrams: it is cut to wire packets, each with a number
//! of its own. A wire packet that is too long for the lane goes in two pieces, in two datagrams,
//! both with its one number and offload byte. The receiver waits for the other half of at most 32.
//! A control frame that is too long goes in two Parts, type and body of it split anywhere, with the
//! same serial. Only the newest serial is waited for, and a Part is never in Parts.
//!
//! **Repair.** What is repaired of a packet is its shard, `length (2) ‖ offload (1) ‖ packet`, with
//! zeros behind it as far as the longest; of offload only bit 2 counts. A packet of more than 1,533 bytes has the
//! shard of one of no length, and is not repaired. The parity is the sum over
//! GF(2^8), polynomial 0x11D, of the shards of `span` source numbers from `first` (the low half) on,
//! each times its coefficient, a function of its whole number n and the key, with all
//! numbers modulo 2^64:
//!
//! ```text
//!  x = n · 9E3779B97F4A7C15 + (key + 1) · D1B54A32D192ED03
//!  x = (x ^ x >> 30) · BF58476D1CE4E5B9      x = (x ^ x >> 27) · 94D049BB133111EB
//!  coefficient = ((x ^ x >> 31) >> 32) · 255 >> 32, plus 1
//! ```
//!
//! A sender that clears bit 5 of a packet does not keep it: no parity covers it and nobody need ask
//! for it. A repaired packet is delivered as if it had come, and its number is taken.
//!
//! **Report.** What arrived of a lane, by the numbers of its datagrams (epoch · 2^32 + counter, low
//! half), and which packets are to be sent again. Everything in it is repeated by later ones. Numbers without a length are
//! varints (RFC 9000, section 16) in their shortest form:
//!
//! ```text
//! ┌───────┬─────────────┬─────────────┬─────┬───────────┬───────┬────────┬──────────┬──────────┬────────┐
//! │ flags │ highest (4) │ arrival (4) │ age │ datagrams │ bytes │ ECN-CE │ repaired │ residual │ wasted │
//! └───────┴─────────────┴─────────────┴─────┴───────────┴───────┴────────┴──────────┴──────────┴────────┘
//! ┌────────────┬───────┬─────────────────────────────┬─────────────┬────────────────────────────────────┐
//! │ ranges (1) │ first │ ranges − 1 times gap, length│ missing (1) │ number (4), missing − 1 times step │
//! └────────────┴───────┴─────────────────────────────┴─────────────┴────────────────────────────────────┘
//! ```
//!
//! Flags: bit 0 asks for a report. Arrival is that of the highest, in microseconds of the receiver's clock; age is the
//! time since then. Datagrams, bytes and ECN-CE are all that arrived on the lane; repaired, residual and wasted what the
//! session's repair did, lost for good and had too much. First is how many below the highest arrived without
//! a gap; going down, gap and length are numbers missing and numbers there, less one each. Number and
//! steps (less one) are source numbers wanted again.
//!
//! **Handshake.** Kind `01` only. Message 1 does not fit the 1,200 bytes that every path carries, so an Init may be
//! fragmented. An unanswered Init is followed by a new one, not by a copy, after about 250 ms, 500 ms, 1 s,
//! then each 2 s; a Reply to any of the last four is taken. The server thus may have several
//! sessions of which nothing has opened; the client's first sealed frame says which one counts.
//! Every answer is shorter than the Init, and the server keeps nothing for whom it has not
//! accepted:
//!
//! ```text
//!  mac1      = BLAKE2s-128(key: BLAKE2s-256("adit mac1" ‖ server's public key), all before mac1)
//!  mac2      = BLAKE2s-128(key: cookie, all before mac2); zeros without a cookie
//!  cookie    = BLAKE2s-128(key: R, "cookie" ‖ address (16) ‖ port (2))
//!  Cookie    : XChaCha20-Poly1305(key: BLAKE2s-256("adit cookie" ‖ server's public key), nonce,
//!              cookie, AAD: mac1 of the Init)
//!  challenge = for i of 0, 1: BLAKE2s-128(key: R, "challenge" ‖ i ‖ address ‖ port ‖ key ‖ instance)
//! ```
//!
//! R is random and replaced every 120 s; address and port are those the Init came from, IPv4 mapped
//! into IPv6. How cookie and challenge are made is the server's own affair. An Init with a wrong mac1 is
//! dropped. Under load, one with a wrong mac2 is answered by a Cookie, which the client uses for
//! 120 s; and one with a right mac2 is read if its address (IPv4) or network of 64 bits (IPv6) has had
//! no more than 20 a second, 5 at once.
//!
//! **Lossy lanes say it again.** Until it is answered, and at most 16 times: Join until JoinOk, JoinOk until JoinEcho,
//! Config until ConfigOk, RekeyInit until RekeyReply. What answers is said again when what it
//! answers comes again, and a copy changes nothing: the same Join from the same address is answered by the same JoinOk,
//! the same JoinOk by JoinEcho, the same RekeyInit by the same RekeyReply. A Close is said three times.
//!
//! **Join.** Sealed with counter 0 of the new lane, as on a stream lane, so what the lane seals
//! begins with 1. It is padded to 1,200 bytes: a lane that joins carries that much. Until it is confirmed the lane
//! goes where its Join came from last. Each address is sent a JoinOk of its own, and the lane then goes to the one
//! whose challenge has come back.
//!
//! **Paths.** When a datagram opens that has the highest counter yet and came from another address,
//! that address is sent a PathChallenge, three at most, and no more than three times the bytes that
//! came from it. Once its PathResponse has come, by whatever path, the lane goes there; the old
//! address is sent one PathChallenge. A PathResponse goes where the PathChallenge came from.
//!
//! **Path MTU** (RFC 8899). A lane begins with datagrams of at most 1,200 bytes. A Probe, padded to
//! the length it tries, is answered by a ProbeOk. Fragments are forbidden but for handshakes.
//!
//! ## Liveness
//!
//! Ping after 10 s without a frame, or 5 s after the first unanswered packet; a ping unanswered for
//! 10 s means that the lane is dead. Any frame that opens is an answer.
//!
//! On a datagram lane the first Ping follows q = max(350 ms, 4 round trips) after the first
//! unanswered packet, another q/2 later, then one each second. The lane is taken for silent after
//! 2 q, and for dead after 10 s, or 3 s if the session has another that is not silent.
//!
//! ## When something does not open
//!
//! | what | then |
//! |---|---|
//! | header wrong, counter not increased, tag wrong | the lane is dead, the session lives |
//! | epoch unknown or erased | the frame is dropped: it may have been long under way |
//! | source number seen or too old; packet header malformed | the packet is dropped |
//! | Join refused | silence |
//! | a datagram: header or tag wrong, counter seen or too old, lane or handle unknown | it is dropped: anybody may have sent it |

mod config;
mod control;
mod cookie;
mod datagram;
mod enrol;
mod flow;
mod frame;
mod handshake;
mod reader;
mod repair;
mod report;
mod sealed;

pub use config::{
    ConfigError, DEFAULT_MTU, InnerConfig, MAX_DNS, MAX_MTU, MAX_RECORDS_LEN, MIN_MTU,
    record_field_len,
};
pub use control::{CloseReason, Control, ControlError, JOIN_CHALLENGE_LEN, PATH_CHALLENGE_LEN};
pub use cookie::{
    COOKIE_LABEL, COOKIE_LEN, COOKIE_NONCE_LEN, COOKIE_REPLY_LEN, CookieReply, MAC_LEN, MAC1_LABEL,
};
pub use datagram::{
    BASE_DATAGRAM, DATAGRAM_COUNTER_LIMIT, DATAGRAM_HEADER_LEN, DATAGRAM_OVERHEAD,
    DATAGRAM_PACKET_HEADER_LEN, DATAGRAM_PACKET_HEADROOM, DATAGRAM_PACKET_OVERHEAD,
    DatagramFormatError, DatagramHeader, DatagramPacketHeader, DatagramType, InitDatagram,
    JOIN_DATAGRAM_HEADER_LEN, JOIN_DATAGRAM_LEN, JoinDatagram, Piece, datagram_handle,
    datagram_type, expand_source, join_datagram_session,
};
pub use enrol::{
    INVITATION_ID_LEN, InvitationId, MAX_NAME_LEN, TOKEN_LEN, Token, Verdict, is_client_name,
};
pub use flow::{
    FLOW_DATA_HEAD, FlowFrame, FlowFrameError, MAX_FLOW_DATA, MAX_FLOW_HEAD, RelayedId, ResetReason,
};
pub use frame::{
    FrameFormatError, FrameType, LENGTH_LEN, MAX_FRAME, MAX_FRAME_PREAUTH, frame_type, split, write,
};
pub use handshake::{
    CAPABILITY_INVITED, CAPABILITY_RELAYED, CHALLENGE_LEN, HandshakeFormatError, HandshakeFrame,
    HandshakeKind, INSTANCE_LEN, InitPayload, MAJOR, MINOR, NOISE_INIT_OVERHEAD,
    NOISE_REPLY_OVERHEAD, RefuseReason, ReplyPayload, prologue,
};
pub use reader::{Reader, Short};
pub use repair::{REPAIR_HEADER_LEN, RepairHeader, RepairHeaderError, SHARD_PREFIX_LEN};
pub use report::{
    MAX_MISSING, MAX_RANGES, MAX_REPORT_LEN, MAX_VARINT, Missing, Ranges, RepairCounts, Report,
    ReportError, Span, expand,
};
pub use sealed::{
    InnerType, JOIN_HEADER_LEN, JOIN_LEN, JoinHeader, LaneId, NONCE_LEN, PACKET_HEADER_LEN,
    PACKET_HEADROOM, PacketHeader, PacketHeaderError, SEALED_HEADER_LEN, SealedFormatError,
    SealedHeader, SessionId, TAG_LEN, TAILROOM, is_skippable, join_session_id, nonce,
};
