//! Leases over time: kept, taken over, expired, restored.

use proptest::prelude::*;

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use super::table::INSTANCES;
use super::*;
use crate::proto::PublicKey;

const START: SystemTime = SystemTime::UNIX_EPOCH;

fn at(seconds: u64) -> SystemTime {
    START + Duration::from_secs(1_000_000 + seconds)
}

fn owner(client: u8, instance: u8) -> Owner {
    Owner {
        key: PublicKey::from_bytes([client; 32]),
        instance: [instance; 8],
    }
}

fn v4(text: &str) -> Option<Ipv4Addr> {
    Some(text.parse().expect("an address"))
}

fn leases(network: &str, fixed: &[(u8, &str)]) -> Leases {
    let fixed = fixed.iter().map(|(client, ip)| Fixed {
        key: PublicKey::from_bytes([*client; 32]),
        lease: Lease {
            v4: v4(ip),
            v6: None,
        },
    });
    Leases::new(
        Some(network.parse().expect("a network")),
        None,
        fixed,
        Settings::default(),
    )
}

fn both() -> Leases {
    Leases::new(
        Some("10.86.0.0/24".parse().expect("a network")),
        Some("fd86::/64".parse().expect("a network")),
        [],
        Settings::default(),
    )
}

#[test]
fn addresses_given_by_another_configuration_go_to_whoever_comes_next() {
    let fixed = |client: u8, ip: &str| Fixed {
        key: PublicKey::from_bytes([client; 32]),
        lease: Lease {
            v4: v4(ip),
            v6: None,
        },
    };
    let mut leases = leases("10.86.0.0/24", &[(1, "10.86.0.2")]);
    let got =
        |leases: &mut Leases, client| leases.acquire(at(0), owner(client, 1)).expect("one").v4;
    // The lowest is kept for the first client.
    assert_eq!(got(&mut leases, 2), v4("10.86.0.3"));
    leases.set_fixed([fixed(2, "10.86.0.9"), fixed(4, "10.86.0.4")]);
    assert_eq!(
        leases.lease(&owner(2, 1)).and_then(|lease| lease.v4),
        v4("10.86.0.3"),
        "what is held stays"
    );
    // What is kept no more is free, and what is kept now is not.
    assert_eq!(got(&mut leases, 1), v4("10.86.0.2"));
    assert_eq!(got(&mut leases, 3), v4("10.86.0.5"));
    assert_eq!(got(&mut leases, 4), v4("10.86.0.4"));
    leases.leave(at(1), &owner(2, 1));
    let next = leases.acquire(at(1), owner(2, 2)).expect("one");
    assert_eq!(next.v4, v4("10.86.0.9"));
}

#[test]
fn leases_of_a_client_that_is_forgotten_are_free_at_once() {
    let mut leases = leases("10.86.0.0/24", &[]);
    for instance in 1..=3 {
        leases.acquire(at(0), owner(1, instance)).expect("one");
    }
    leases.acquire(at(0), owner(2, 1)).expect("one");
    leases.release(at(1), &owner(1, 2));
    leases.forget(&owner(1, 1).key);
    assert_eq!((leases.len(), leases.held()), (1, 1));
    leases.release(at(2), &owner(1, 1));
    let lease = leases.acquire(at(2), owner(3, 1)).expect("one");
    assert_eq!(lease.v4, v4("10.86.0.2"), "the lowest that was given back");
}

#[test]
fn first_address_is_the_gateway_and_clients_follow() {
    let mut leases = both();
    assert_eq!(
        (
            leases.gateway4(),
            leases.gateway6().map(|ip| ip.to_string())
        ),
        (v4("10.86.0.1"), Some("fd86::1".to_owned()))
    );
    let first = leases.acquire(at(0), owner(1, 1)).expect("a lease");
    let second = leases.acquire(at(0), owner(2, 1)).expect("a lease");
    assert_eq!((first.v4, second.v4), (v4("10.86.0.2"), v4("10.86.0.3")));
    assert_eq!(
        (first.v6, second.v6),
        ("fd86::2".parse().ok(), "fd86::3".parse().ok())
    );
}

#[test]
fn an_owner_keeps_its_address_until_the_lease_expires() {
    let mut leases = leases("10.86.0.0/24", &[]);
    let first = leases.acquire(at(0), owner(1, 1)).expect("a lease");
    leases.release(at(10), &owner(1, 1));
    assert_eq!(leases.acquire(at(10 + 86_399), owner(1, 1)), Ok(first));
    leases.release(at(100_000), &owner(1, 1));
    leases.acquire(at(100_001), owner(2, 1)).expect("a lease");
    leases.expire(at(100_000 + 86_400));
    assert_eq!(leases.lease(&owner(1, 1)), None);
    assert_eq!(
        leases
            .acquire(at(200_000), owner(3, 1))
            .map(|lease| lease.v4),
        Ok(first.v4)
    );
}

#[test]
fn a_lease_is_held_until_its_last_session_ends() {
    let mut leases = leases("10.86.0.0/30", &[]);
    leases.acquire(at(0), owner(1, 1)).expect("a lease");
    // The session that supersedes the first comes before the first one ends.
    leases.acquire(at(1), owner(1, 1)).expect("the same");
    leases.release(at(2), &owner(1, 1));
    assert_eq!(leases.held(), 1);
    assert!(leases.acquire(at(3), owner(2, 1)).is_err());
    leases.release(at(4), &owner(1, 1));
    leases.release(at(5), &owner(1, 1));
    assert_eq!(leases.held(), 0);
    assert!(leases.acquire(at(6), owner(2, 1)).is_ok());
}

#[test]
fn exhaustion_is_told_with_numbers() {
    let mut leases = leases("10.86.0.0/29", &[]);
    for client in 1..=5 {
        leases.acquire(at(0), owner(client, 1)).expect("a lease");
    }
    let error = leases.acquire(at(1), owner(6, 1)).expect_err("exhausted");
    assert_eq!(
        error,
        LeaseError::Exhausted {
            network: "10.86.0.0/29".parse().expect("a network"),
            usable: 5,
            held: 5
        }
    );
    assert!(
        error
            .to_string()
            .starts_with("no address is left in 10.86.0.0/29: 5 of 5 are held"),
        "{error}"
    );
}

#[test]
fn the_longest_idle_lease_makes_room() {
    let mut leases = leases("10.86.0.0/29", &[]);
    for client in 1..=5 {
        leases.acquire(at(0), owner(client, 1)).expect("a lease");
    }
    leases.release(at(20), &owner(2, 1));
    leases.release(at(10), &owner(4, 1));
    assert_eq!(
        leases.acquire(at(30), owner(6, 1)).map(|lease| lease.v4),
        Ok(v4("10.86.0.5"))
    );
    assert_eq!(leases.lease(&owner(4, 1)), None);
    assert!(leases.lease(&owner(2, 1)).is_some());
}

#[test]
fn a_fixed_address_goes_to_the_first_instance_and_to_nobody_else() {
    let mut leases = leases("10.86.0.0/29", &[(1, "10.86.0.2")]);
    assert_eq!(
        leases.acquire(at(0), owner(2, 1)).map(|lease| lease.v4),
        Ok(v4("10.86.0.3"))
    );
    assert_eq!(
        leases.acquire(at(0), owner(1, 1)).map(|lease| lease.v4),
        Ok(v4("10.86.0.2"))
    );
    assert_eq!(
        leases.acquire(at(0), owner(1, 2)).map(|lease| lease.v4),
        Ok(v4("10.86.0.4"))
    );
    // The first one is gone, and so the next new one is the first.
    leases.release(at(5), &owner(1, 1));
    assert_eq!(
        leases.acquire(at(6), owner(1, 3)).map(|lease| lease.v4),
        Ok(v4("10.86.0.2"))
    );
    assert_eq!(
        leases.acquire(at(7), owner(1, 1)).map(|lease| lease.v4),
        Ok(v4("10.86.0.5"))
    );
    // Even an exhausted pool keeps it.
    leases.release(at(8), &owner(1, 3));
    leases.acquire(at(9), owner(4, 1)).expect("the last one");
    assert!(leases.acquire(at(9), owner(5, 1)).is_err());
}

#[test]
fn a_ninth_instance_takes_the_place_of_an_idle_one_or_is_refused() {
    let mut leases = leases("10.86.0.0/24", &[]);
    for instance in 1..=8 {
        leases.acquire(at(0), owner(1, instance)).expect("a lease");
    }
    assert_eq!(
        leases.acquire(at(1), owner(1, 9)),
        Err(LeaseError::TooManyInstances { limit: 8 })
    );
    assert!(leases.acquire(at(1), owner(2, 1)).is_ok());
    leases.release(at(2), &owner(1, 3));
    assert!(leases.acquire(at(3), owner(1, 9)).is_ok());
    assert_eq!(leases.lease(&owner(1, 3)), None);
}

#[test]
fn leases_survive_a_restart_and_their_sessions_may_come_back_first() {
    let mut old = leases("10.86.0.0/29", &[]);
    for client in 1..=5 {
        old.acquire(at(0), owner(client, 1)).expect("a lease");
    }
    old.release(at(50), &owner(5, 1));
    let bytes = old.save(at(100));
    let mut new = leases("10.86.0.0/29", &[]);
    assert_eq!(
        new.restore(at(110), &bytes, |_| true),
        Ok(Restored {
            kept: 5,
            dropped: 0
        })
    );
    // Only the idle one gives way within the grace; then the others do.
    assert_eq!(
        new.acquire(at(111), owner(6, 1)).map(|lease| lease.v4),
        Ok(v4("10.86.0.6"))
    );
    assert!(new.acquire(at(112), owner(7, 1)).is_err());
    assert_eq!(
        new.acquire(at(113), owner(3, 1)).map(|lease| lease.v4),
        Ok(v4("10.86.0.4"))
    );
    assert!(new.acquire(at(110 + 60), owner(7, 1)).is_ok());
}

#[test]
fn a_client_that_left_has_its_addresses_again_as_another_instance() {
    let mut old = both();
    let first = old.acquire(at(0), owner(1, 1)).expect("a lease");
    old.acquire(at(0), owner(1, 2)).expect("another");
    old.leave(at(1), &owner(1, 1));
    let bytes = old.save(at(2));
    let mut new = both();
    new.restore(at(3), &bytes, |_| true).expect("JSON");
    // Others come first, and an instance that is merely away keeps its own.
    assert_ne!(new.acquire(at(4), owner(2, 1)), Ok(first));
    assert_eq!(new.acquire(at(5), owner(1, 9)), Ok(first));
    assert_eq!(new.lease(&owner(1, 1)), None);
    assert_ne!(new.acquire(at(6), owner(1, 8)), Ok(first));
    // One that is out of reach is not one that left.
    new.release(at(7), &owner(1, 9));
    assert_ne!(new.acquire(at(8), owner(1, 7)), Ok(first));
    assert_eq!(new.acquire(at(9), owner(1, 9)), Ok(first));
}

#[test]
fn client_that_was_abandoned_has_its_addresses_again_as_another_instance() {
    let mut leases = both();
    let first = leases.acquire(at(0), owner(1, 1)).expect("a lease");
    leases.acquire(at(0), owner(2, 1)).expect("another's");
    leases.release(at(1), &owner(1, 1));
    leases.abandon(&owner(1, 1).key);
    // Over a restart, and with others before it.
    let mut new = both();
    new.restore(at(3), &leases.save(at(2)), |_| true)
        .expect("JSON");
    assert_ne!(new.acquire(at(4), owner(3, 1)), Ok(first));
    assert_eq!(new.acquire(at(5), owner(1, 9)), Ok(first));
    assert_eq!(leases.acquire(at(5), owner(1, 1)), Ok(first));
}

#[test]
fn fixed_addresses_come_before_those_of_an_instance_that_left() {
    let mut leases = leases("10.86.0.0/24", &[(1, "10.86.0.9")]);
    let acquire = |leases: &mut Leases, instance| {
        leases
            .acquire(at(1), owner(1, instance))
            .expect("a lease")
            .v4
    };
    assert_eq!(acquire(&mut leases, 1), v4("10.86.0.9"));
    assert_eq!(acquire(&mut leases, 2), v4("10.86.0.2"));
    leases.leave(at(2), &owner(1, 2));
    assert_eq!(
        acquire(&mut leases, 3),
        v4("10.86.0.2"),
        "the fixed one is held"
    );
    leases.leave(at(3), &owner(1, 3));
    leases.leave(at(4), &owner(1, 1));
    assert_eq!(acquire(&mut leases, 4), v4("10.86.0.9"));
    leases.release(at(5), &owner(1, 4));
    assert_eq!(
        acquire(&mut leases, 5),
        v4("10.86.0.9"),
        "it is idle, and the first may have it"
    );
}

#[test]
fn what_does_not_fit_the_configuration_is_not_restored() {
    let mut old = leases("10.86.0.0/24", &[]);
    for client in 1..=4 {
        old.acquire(at(0), owner(client, 1)).expect("a lease");
        old.release(at(u64::from(client)), &owner(client, 1));
    }
    let bytes = old.save(at(5));
    let restored = |leases: &mut Leases, now| {
        leases
            .restore(now, &bytes, |key| *key != owner(4, 1).key)
            .expect("JSON")
    };
    // 10.86.0.3 belongs to client 9 now, and client 4 is gone.
    assert_eq!(
        restored(&mut leases("10.86.0.0/24", &[(9, "10.86.0.3")]), at(10)),
        Restored {
            kept: 2,
            dropped: 2
        }
    );
    assert_eq!(
        restored(&mut leases("10.87.0.0/24", &[]), at(10)),
        Restored {
            kept: 0,
            dropped: 4
        }
    );
    assert_eq!(
        restored(&mut both(), at(10)),
        Restored {
            kept: 0,
            dropped: 4
        }
    );
    assert_eq!(
        restored(&mut leases("10.86.0.0/24", &[]), at(86_402)),
        Restored {
            kept: 1,
            dropped: 3
        }
    );
    let mut twice = leases("10.86.0.0/24", &[]);
    restored(&mut twice, at(10));
    assert_eq!(
        restored(&mut twice, at(10)),
        Restored {
            kept: 0,
            dropped: 4
        }
    );
}

#[test]
fn a_state_that_makes_no_sense_is_refused_whole() {
    let mut leases = leases("10.86.0.0/24", &[]);
    for bytes in [
        &b""[..],
        b"{",
        b"[]",
        b"{\"version\":1}",
        b"\xff",
        b"{\"version\":1,\"leases\":[{}]}",
    ] {
        let error = leases
            .restore(at(0), bytes, |_| true)
            .expect_err("no state");
        assert!(matches!(error, RestoreError::Malformed { .. }), "{error}");
    }
    assert_eq!(
        leases.restore(at(0), b"{\"version\":2,\"leases\":[]}", |_| true),
        Err(RestoreError::Version { found: 2 })
    );
    assert!(leases.is_empty());
}

#[test]
fn a_clock_that_jumps_back_takes_no_lease_away() {
    let mut leases = leases("10.86.0.0/24", &[]);
    let lease = leases.acquire(at(1000), owner(1, 1)).expect("a lease");
    leases.release(at(1000), &owner(1, 1));
    leases.expire(START);
    assert_eq!(leases.acquire(START, owner(1, 1)), Ok(lease));
    let bytes = leases.save(START);
    assert_eq!(
        leases
            .restore(START, &bytes, |_| true)
            .map(|restored| restored.dropped),
        Ok(1)
    );
}

#[test]
fn changes_are_noticed_once() {
    let mut leases = leases("10.86.0.0/24", &[]);
    assert!(!leases.take_changed());
    leases.acquire(at(0), owner(1, 1)).expect("a lease");
    assert!(leases.take_changed());
    assert!(!leases.take_changed());
    leases.release(at(1), &owner(1, 1));
    assert!(leases.take_changed());
}

#[test]
fn a_huge_network_costs_no_more_than_its_leases() {
    let network = "2001:db8::/32".parse().expect("a network");
    let mut leases = Leases::new(None, Some(network), [], Settings::default());
    for client in 1..=200 {
        leases.acquire(at(0), owner(client, 1)).expect("a lease");
    }
    assert_eq!(
        leases.acquire(at(0), owner(201, 1)).map(|lease| lease.v6),
        Ok("2001:db8::ca".parse().ok())
    );
}

#[derive(Clone, Debug)]
enum Step {
    Acquire(u8, u8),
    Release(u8, u8),
    Leave(u8, u8),
    Wait(u32),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u8..6, 1_u8..11).prop_map(|(client, instance)| Step::Acquire(client, instance)),
        3 => (1_u8..6, 1_u8..11).prop_map(|(client, instance)| Step::Release(client, instance)),
        2 => (1_u8..6, 1_u8..11).prop_map(|(client, instance)| Step::Leave(client, instance)),
        2 => (0_u32..50_000).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn no_address_has_two_owners_and_held_leases_never_move(steps in prop::collection::vec(step(), 1..120)) {
        let make = || leases("10.86.0.0/28", &[(1, "10.86.0.2"), (2, "10.86.0.14")]);
        let mut leases = make();
        let mut held: HashMap<Owner, (Lease, u32)> = HashMap::new();
        let mut now = at(0);
        for step in steps {
            match step {
                Step::Acquire(client, instance) => {
                    let owner = owner(client, instance);
                    if let Ok(lease) = leases.acquire(now, owner) {
                        let entry = held.entry(owner).or_insert((lease, 0));
                        prop_assert_eq!(entry.0, lease, "a held lease moved");
                        entry.1 += 1;
                    }
                }
                Step::Release(client, instance) | Step::Leave(client, instance) => {
                    let owner = owner(client, instance);
                    if let Some(entry) = held.get_mut(&owner) {
                        if matches!(step, Step::Leave(..)) {
                            leases.leave(now, &owner);
                        } else {
                            leases.release(now, &owner);
                        }
                        entry.1 -= 1;
                        if entry.1 == 0 {
                            held.remove(&owner);
                        }
                    }
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                Step::Restart => {
                    let bytes = leases.save(now);
                    leases = make();
                    let restored = leases.restore(now, &bytes, |_| true).expect("own state");
                    // Idle leases may have expired in the meantime; nothing else is lost.
                    prop_assert!(restored.kept >= held.len());
                    for (owner, (lease, _)) in held.drain() {
                        prop_assert_eq!(leases.lease(&owner), Some(lease));
                    }
                }
            }
            let mut seen = BTreeSet::new();
            for (owner, entry) in &leases.entries {
                let address = entry.lease.v4.expect("an address");
                prop_assert!(seen.insert(address), "{} has two owners", address);
                prop_assert!(!matches!(address.octets()[3], 0 | 1 | 15), "{} is not a client's", address);
                if address.octets()[3] == 2 {
                    prop_assert_eq!(owner.key, PublicKey::from_bytes([1; 32]));
                }
            }
            for (owner, (lease, _)) in &held {
                prop_assert_eq!(leases.lease(owner), Some(*lease));
            }
            for instances in leases.instances.values() {
                prop_assert!(instances.len() <= INSTANCES);
            }
            prop_assert_eq!(leases.pool4.as_ref().map(|pool| pool.used.len()), Some(leases.len()));
        }
    }
}
