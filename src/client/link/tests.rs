//! Which server is tried when, in virtual time.

use proptest::prelude::*;

use super::*;

const ALL: [Scheme; 3] = [Scheme::Udp, Scheme::Tls, Scheme::Tcp];

fn link(servers: usize) -> (Link, Instant) {
    let now = Instant::now();
    (Link::new(now, vec![Scheme::Tcp; servers], 7), now)
}

fn ranked() -> (Link, Instant) {
    let now = Instant::now();
    (Link::new(now, ALL, 7), now)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn wait(link: &Link, now: Instant) -> Duration {
    link.poll_timeout().expect("a next attempt") - now
}

fn fail(link: &mut Link, now: Instant, server: usize) {
    assert_eq!(link.poll_attempt(now), Some(server));
    link.handle_failed(now, server);
}

#[test]
fn first_attempt_is_due_at_once_and_only_once() {
    let (mut link, now) = link(1);
    assert_eq!(link.poll_timeout(), Some(now));
    assert_eq!(link.poll_attempt(now), Some(0));
    assert_eq!(link.poll_attempt(now), None);
    assert_eq!(link.poll_timeout(), None);
}

#[test]
fn servers_are_tried_in_turn_without_a_pause_then_with_one() {
    let (mut link, now) = link(3);
    for server in [0, 1] {
        fail(&mut link, now, server);
        assert_eq!(wait(&link, now), Duration::ZERO);
    }
    fail(&mut link, now, 2);
    let pause = wait(&link, now);
    assert!(
        pause >= BACKOFF_MIN / 2 && pause <= BACKOFF_MIN,
        "{pause:?}"
    );
    assert_eq!(link.poll_attempt(now + pause), Some(0));
}

#[test]
fn back_off_ends_at_4_s() {
    let (mut link, mut now) = link(1);
    for _ in 0..100 {
        now += wait(&link, now);
        fail(&mut link, now, 0);
        assert!(wait(&link, now) <= BACKOFF_MAX);
    }
    assert!(wait(&link, now) >= BACKOFF_MAX / 2);
}

#[test]
fn datagrams_have_a_head_start_of_1500_ms_and_go_on_beside_the_next() {
    let (mut link, now) = ranked();
    assert_eq!(link.poll_attempt(now), Some(0));
    assert_eq!(wait(&link, now), HEAD_START_UDP);
    let later = now + HEAD_START_UDP;
    assert_eq!(link.poll_attempt(later), Some(1));
    assert!(link.is_trying(0) && link.is_trying(1));
    link.handle_connected(later, 0);
    assert!(!link.is_trying(1), "the first that answers wins");
    assert_eq!(link.poll_timeout(), None, "there is nothing better");
}

#[test]
fn better_lane_is_looked_for_while_a_worse_one_is_up_and_found_within_30_s() {
    let (mut link, now) = ranked();
    fail(&mut link, now, 0);
    fail(&mut link, now, 1);
    assert_eq!(link.poll_attempt(now), Some(2));
    link.handle_connected(now, 2);
    let mut later = now;
    for round in 0..6 {
        let pause = wait(&link, later);
        assert!(pause <= PROBE_MAX, "round {round}: {pause:?}");
        later += pause;
        assert_eq!(link.poll_attempt(later), Some(0));
        assert!(!link.wants_fresh(), "the session goes on");
        link.handle_failed(later, 0);
        fail(&mut link, later, 1);
    }
    later += wait(&link, later);
    assert_eq!(link.poll_attempt(later), Some(0));
    link.handle_connected(later, 0);
    assert_eq!(link.poll_retired(later), None);
    assert_eq!(wait(&link, later), SETTLE);
    assert_eq!(link.poll_retired(later + SETTLE), Some(2));
    assert_eq!(link.poll_timeout(), None);
}

#[test]
fn best_of_those_that_are_better_is_kept_when_it_is_not_the_best_of_all() {
    let (mut link, now) = ranked();
    fail(&mut link, now, 0);
    fail(&mut link, now, 1);
    link.poll_attempt(now);
    link.handle_connected(now, 2);
    let later = now + wait(&link, now);
    fail(&mut link, later, 0);
    assert_eq!(link.poll_attempt(later), Some(1));
    link.handle_connected(later, 1);
    let later = later + SETTLE;
    assert_eq!(link.poll_retired(later), Some(2));
    let later = later + wait(&link, later);
    fail(&mut link, later, 0);
    assert_eq!(link.poll_attempt(later), None, "the third is worse");
    assert!(wait(&link, later) > Duration::ZERO);
}

#[test]
fn silent_lane_is_raced_at_once_and_closed_when_another_is_there() {
    let (mut link, now) = ranked();
    link.poll_attempt(now);
    link.handle_connected(now, 0);
    link.handle_silent(now, 0);
    assert_eq!(link.poll_attempt(now), Some(1));
    assert!(link.wants_fresh(), "the server may have lost the session");
    assert_eq!(wait(&link, now), HEAD_START_ANOTHER);
    let later = now + HEAD_START_ANOTHER;
    assert_eq!(link.poll_attempt(later), Some(2));
    link.handle_connected(later, 1);
    assert_eq!(link.poll_retired(later), Some(0));
    assert!(!link.is_trying(2));
    // And back, when it heals.
    let later = later + wait(&link, later);
    assert_eq!(link.poll_attempt(later), Some(0));
}

#[test]
fn only_server_is_asked_anew_when_its_lane_is_silent() {
    let now = Instant::now();
    let mut link = Link::new(now, [Scheme::Udp], 7);
    link.poll_attempt(now);
    link.handle_connected(now, 0);
    link.handle_silent(now, 0);
    assert_eq!(link.poll_attempt(now), Some(0));
    assert!(link.is_up() && link.wants_fresh());
    link.handle_heard(now, 0);
    assert!(link.is_up() && !link.is_trying(0));
    assert_eq!(link.poll_timeout(), None);
}

#[test]
fn lane_that_speaks_again_ends_the_race() {
    let (mut link, now) = ranked();
    link.poll_attempt(now);
    link.handle_connected(now, 0);
    link.handle_silent(now, 0);
    assert_eq!(link.poll_attempt(now), Some(1));
    link.handle_heard(now, 0);
    assert!(!link.is_trying(1));
    assert_eq!(link.poll_attempt(now + HEAD_START_ANOTHER), None);
}

#[test]
fn lane_of_a_session_that_was_replaced_is_not_relied_on() {
    let (mut link, now) = ranked();
    fail(&mut link, now, 0);
    fail(&mut link, now, 1);
    link.poll_attempt(now);
    link.handle_connected(now, 2);
    let later = now + wait(&link, now);
    assert_eq!(link.poll_attempt(later), Some(0));
    // The third may stay until this one has proven itself, which it does not.
    link.handle_connected(later, 0);
    link.handle_silent(later, 0);
    assert_eq!(link.poll_attempt(later), Some(1));
    link.handle_fresh(later, 1);
    while link.poll_retired(later).is_some() {}
    assert!(link.handle_lost(later, 1), "there is no other");
    assert!(wait(&link, later) <= BACKOFF_MIN);
}

#[test]
fn better_lane_is_looked_for_at_once_after_a_silence_that_was_the_servers() {
    let (mut link, now) = ranked();
    assert_eq!(link.poll_attempt(now), Some(0));
    link.handle_connected(now, 0);
    link.handle_silent(now, 0);
    assert_eq!(link.poll_attempt(now), Some(1));
    // It still has the session, so that the first is what does not work.
    let mut kept = link;
    kept.handle_connected(now, 1);
    assert_eq!(kept.poll_attempt(now), None);
    let (mut link, now) = ranked();
    assert_eq!(link.poll_attempt(now), Some(0));
    link.handle_connected(now, 0);
    link.handle_silent(now, 0);
    assert_eq!(link.poll_attempt(now), Some(1));
    link.handle_fresh(now, 1);
    assert_eq!(link.poll_attempt(now), Some(0));
    link.handle_failed(now, 0);
    assert!(wait(&link, now) >= PROBE_MIN / 2);
}

#[test]
fn race_that_fails_is_run_again_while_the_silence_lasts() {
    let (mut link, now) = ranked();
    link.poll_attempt(now);
    link.handle_connected(now, 0);
    link.handle_silent(now, 0);
    fail(&mut link, now, 1);
    fail(&mut link, now, 2);
    fail(&mut link, now, 0);
    assert_eq!(wait(&link, now), BACKOFF_ANOTHER);
    let later = now + BACKOFF_ANOTHER;
    assert_eq!(link.poll_attempt(later), Some(1));
    // The lane is given up while the race goes on.
    assert!(link.handle_lost(later, 0));
    assert!(link.is_trying(1));
    link.handle_failed(later, 1);
    fail(&mut link, later, 2);
    assert!(link.poll_timeout().is_some());
}

#[test]
fn stable_link_is_made_again_at_once_with_the_same_server() {
    let (mut link, now) = link(2);
    fail(&mut link, now, 0);
    assert_eq!(link.poll_attempt(now), Some(1));
    link.handle_connected(now, 1);
    assert!(link.is_up());
    let later = now + STABLE;
    assert!(link.handle_lost(later, 1));
    assert_eq!(link.poll_attempt(later), Some(1));
}

#[test]
fn link_that_is_lost_at_once_again_and_again_is_backed_off() {
    let (mut link, mut now) = link(1);
    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        now += wait(&link, now);
        assert_eq!(link.poll_attempt(now), Some(0));
        link.handle_connected(now, 0);
        assert!(link.handle_lost(now, 0));
        longest = wait(&link, now);
    }
    assert!(longest >= BACKOFF_MAX / 2, "{longest:?}");
}

#[test]
fn loss_without_a_link_is_no_news() {
    let (mut link, now) = link(1);
    assert!(!link.handle_lost(now, 0));
    link.poll_attempt(now);
    assert!(!link.handle_lost(now, 0));
    assert_eq!(link.poll_timeout(), None, "the attempt goes on");
}

#[test]
fn full_server_gives_way_to_the_next_one() {
    let (mut link, now) = link(2);
    link.poll_attempt(now);
    link.handle_connected(now, 0);
    link.handle_closed(now, CloseReason::PoolExhausted);
    let pause = wait(&link, now);
    assert!(pause >= BACKOFF_MIN / 2, "{pause:?}");
    assert_eq!(link.poll_attempt(now + pause), Some(1));
}

#[test]
fn server_that_restarts_is_tried_again_first() {
    let (mut link, now) = link(2);
    link.poll_attempt(now);
    link.handle_connected(now, 0);
    let later = now + STABLE;
    link.handle_closed(later, CloseReason::ShuttingDown);
    let pause = wait(&link, later);
    assert!(
        pause >= BACKOFF_MIN / 2 && pause <= BACKOFF_MIN,
        "{pause:?}"
    );
    assert_eq!(link.poll_attempt(later + pause), Some(0));
}

#[test]
fn server_that_refuses_every_session_is_backed_off() {
    let (mut link, mut now) = link(1);
    for _ in 0..10 {
        now += wait(&link, now);
        link.poll_attempt(now);
        link.handle_connected(now, 0);
        link.handle_closed(now, CloseReason::TooManyInstances);
    }
    assert!(wait(&link, now) >= BACKOFF_MAX / 2);
}

#[test]
fn change_of_the_network_ends_the_back_off() {
    let (mut link, now) = link(1);
    fail(&mut link, now, 0);
    assert_eq!(link.poll_attempt(now), None);
    assert_eq!(link.handle_network_change(now), Change::Retry);
    assert_eq!(link.poll_attempt(now), Some(0));
}

#[test]
fn change_of_the_network_drops_an_attempt_of_before() {
    let (mut link, now) = link(1);
    link.poll_attempt(now);
    link.handle_network_change(now);
    assert!(link.is_trying(0), "a young one goes on");
    let later = now + YOUNG;
    link.handle_network_change(later);
    assert!(!link.is_trying(0));
    assert_eq!(link.poll_attempt(later), Some(0));
}

#[test]
fn change_of_the_network_probes_a_link_that_is_up() {
    let (mut link, now) = link(1);
    link.poll_attempt(now);
    link.handle_connected(now, 0);
    assert_eq!(link.handle_network_change(now), Change::Probe);
    assert!(link.is_up());
}

#[test]
fn loss_of_a_silent_lane_ends_the_search_when_another_still_answers() {
    let (mut link, mut now) = link(3);
    link.poll_attempt(now);
    link.handle_failed(now, 0);
    assert_eq!(link.poll_attempt(now), Some(1));
    link.handle_connected(now, 1);
    now += PROBE_MAX;
    assert_eq!(link.poll_attempt(now), Some(0));
    link.handle_connected(now, 0);
    link.handle_silent(now, 0);
    assert_eq!(link.poll_attempt(now), Some(2));
    assert!(!link.handle_lost(now, 0));
    assert!(!link.is_trying(2), "the lane to the second carries on");
    assert_eq!(link.poll_attempt(now + HEAD_START_ANOTHER), None);
    now += PROBE_MAX;
    assert_eq!(link.poll_attempt(now), Some(0), "a better lane is sought");
    assert_eq!(link.poll_attempt(now + PROBE_MAX), None, "once at a time");
}

#[test]
fn loss_of_a_lane_is_followed_by_a_search_when_what_is_left_is_silent() {
    let (mut link, mut now) = link(3);
    link.poll_attempt(now);
    link.handle_failed(now, 0);
    link.poll_attempt(now);
    link.handle_connected(now, 1);
    now += PROBE_MAX;
    assert_eq!(link.poll_attempt(now), Some(0));
    link.handle_connected(now, 0);
    link.handle_silent(now, 1);
    assert!(!link.handle_lost(now, 0));
    assert_eq!(link.poll_attempt(now), Some(0));
}

#[test]
fn server_that_has_revoked_us_is_asked_every_20_s_until_it_lets_us_in() {
    let (mut link, mut now) = link(1);
    link.poll_attempt(now);
    link.handle_connected(now, 0);
    link.handle_closed(now, CloseReason::Revoked);
    let began = now;
    let mut attempts = 0;
    while now < began + Duration::from_secs(600) {
        now = link.poll_timeout().expect("it goes on");
        if link.poll_attempt(now) == Some(0) {
            attempts += 1;
            link.handle_failed(now, 0);
        }
    }
    assert!((30..=61).contains(&attempts), "{attempts} in ten minutes");
    assert!(link.is_revoked());
    now = link.poll_timeout().expect("it goes on");
    link.poll_attempt(now);
    link.handle_fresh(now, 0);
    assert!(!link.is_revoked());
}

#[test]
fn silence_is_told_as_down_when_it_lasts_and_others_are_tried_at_once() {
    let (mut link, now) = ranked();
    link.poll_attempt(now);
    link.handle_connected(now, 0);
    assert_eq!(link.down_at(), None);
    link.handle_silent(now, 0);
    assert_eq!(link.poll_attempt(now), Some(1));
    let down_at = link.down_at().unwrap();
    assert!((now + ms(2000)..=now + ms(3000)).contains(&down_at));
    // To be told again that it is silent does not put it off.
    link.handle_silent(now + ms(1500), 0);
    assert_eq!(link.down_at(), Some(down_at));
    // A lossy lane that answers in between was never down.
    link.handle_heard(now + ms(2000), 0);
    assert_eq!(link.down_at(), None);
    link.handle_silent(now + ms(2100), 0);
    assert_eq!(link.down_at(), Some(down_at + ms(2100)));
    // Another lane takes its place.
    link.handle_connected(now + ms(2200), 1);
    assert_eq!(link.down_at(), None);
}

#[test]
fn client_is_revoked_where_each_server_that_answers_says_so() {
    // One of the list may be another server: it is asked before the client gives up for a while.
    let (mut link, now) = ranked();
    assert_eq!(link.poll_attempt(now), Some(0));
    link.handle_revoked(now, 0);
    assert!(!link.is_revoked());
    assert_eq!(link.poll_attempt(now), Some(1));
    link.handle_failed(now, 1);
    assert_eq!(link.poll_attempt(now), Some(2));
    link.handle_failed(now, 2);
    assert!(link.is_revoked());
    assert!(wait(&link, now) >= REVOKED_PAUSE / 2);
    // A round that nobody answers does not undo what was said.
    let later = now + wait(&link, now);
    for server in 0..3 {
        assert_eq!(link.poll_attempt(later), Some(server));
        link.handle_failed(later, server);
    }
    assert!(link.is_revoked());
    let later = later + wait(&link, later);
    link.poll_attempt(later);
    link.handle_connected(later, 0);
    assert!(!link.is_revoked());
    // While there is a lane, another way is only not taken.
    let (mut link, now) = ranked();
    link.poll_attempt(now);
    link.handle_failed(now, 0);
    link.poll_attempt(now);
    link.handle_connected(now, 1);
    let later = now + wait(&link, now);
    assert_eq!(link.poll_attempt(later), Some(0));
    link.handle_revoked(later, 0);
    assert!(!link.is_revoked());
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Connected(usize),
    Failed(usize),
    Lost(usize),
    Silent(usize),
    Heard(usize),
    Closed(CloseReason),
    Changed,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5000u64).prop_map(Step::Pass),
        (0..4usize).prop_map(Step::Connected),
        (0..4usize).prop_map(Step::Failed),
        (0..4usize).prop_map(Step::Lost),
        (0..4usize).prop_map(Step::Silent),
        (0..4usize).prop_map(Step::Heard),
        Just(Step::Closed(CloseReason::Revoked)),
        Just(Step::Closed(CloseReason::TooManyInstances)),
        Just(Step::Changed),
    ]
}

proptest! {
    /// Whatever happens, a link that is not up and has nothing under way has a next attempt
    /// within the longest back-off, to a server that there is; and one that is up but not at
    /// its best looks for a better lane within the longest pause.
    #[test]
    fn link_never_gives_up(servers in 1..5usize, steps in prop::collection::vec(step(), 0..200)) {
        let mut now = Instant::now();
        let schemes = (0..servers).map(|index| ALL[index % ALL.len()]);
        let mut link = Link::new(now, schemes, 1);
        for step in steps {
            match step {
                Step::Pass(millis) => now += Duration::from_millis(millis),
                Step::Connected(server) if link.is_trying(server) => link.handle_connected(now, server),
                Step::Failed(server) => link.handle_failed(now, server),
                Step::Lost(server) => { link.handle_lost(now, server); }
                Step::Silent(server) => link.handle_silent(now, server),
                Step::Heard(server) => link.handle_heard(now, server),
                Step::Closed(reason) if link.is_up() => link.handle_closed(now, reason),
                Step::Changed => { link.handle_network_change(now); }
                Step::Connected(_) | Step::Closed(_) => {}
            }
            while let Some(server) = link.poll_retired(now) {
                prop_assert!(server < servers);
                prop_assert!(link.is_up(), "the last lane is not closed");
            }
            let before: Vec<bool> = (0..servers).map(|server| link.is_trying(server)).collect();
            if let Some(server) = link.poll_attempt(now) {
                prop_assert!(server < servers);
                prop_assert!(!before[server]);
            }
            let trying = (0..servers).any(|server| link.is_trying(server));
            let due = link.poll_timeout();
            if !trying && !link.is_up() {
                let most = if link.is_revoked() { REVOKED_PAUSE } else { BACKOFF_MAX };
                prop_assert!(due.is_some_and(|due| due <= now + most), "{:?}", link);
            }
            if !trying && link.is_up() && link.current > 0 {
                prop_assert!(due.is_some_and(|due| due <= now + PROBE_MAX), "{:?}", link);
            }
        }
    }
}
