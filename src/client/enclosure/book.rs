//! Which commands share a client, and what they have counted, those that have ended among them.
//!
//! Nothing is added to the way of a packet: a command's task is asked when somebody looks, and hands its numbers over at its
//! end. What is told never goes down: of a task that does not answer in time its last answer counts, and of one that has
//! ended meanwhile its last word.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::status::{Counter, Counters, Kind, PATIENCE};

/// The commands that share one client.
#[derive(Debug, Default)]
pub struct Book {
    pages: Mutex<Pages>,
    /// One asks at a time, or an answer could be overtaken by a later one, and count in its place.
    turn: AsyncMutex<()>,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Pages {
    joined: u64,
    living: BTreeMap<u64, Living>,
    ended: Counters,
}

#[derive(Debug)]
struct Living {
    asks: mpsc::Sender<Ask>,
    /// Its last answer.
    told: Counters,
}

/// What a command's task is asked by.
pub(super) type Ask = oneshot::Sender<Counters>;

/// A command's page; without a last word, its last answer stands.
#[derive(Debug)]
pub(super) struct Page {
    book: Arc<Book>,
    number: u64,
    last_word: Option<Counters>,
}

impl Book {
    /// Begins a page; its task is asked by what is returned beside it.
    pub(super) fn begin(self: &Arc<Self>) -> (Page, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(1);
        let mut pages = self.pages();
        pages.joined += 1;
        let number = pages.joined;
        let told = Counters::default();
        pages.living.insert(number, Living { asks, told });
        let page = Page {
            book: Arc::clone(self),
            number,
            last_word: None,
        };
        (page, asked)
    }

    /// Counts a command that was turned away.
    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks every command's task and sums up what there is.
    pub async fn counters(&self) -> Counters {
        let _turn = self.turn.lock().await;
        let asking: Vec<_> = (self.pages().living.iter())
            .filter_map(|(number, living)| {
                let (answer, look) = oneshot::channel();
                // One that has not taken the former question yet would not take this one in time either.
                living.asks.try_send(answer).ok()?;
                Some((*number, look))
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        for (number, look) in asking {
            if let Ok(Ok(counters)) = timeout_at(deadline, look).await
                && let Some(living) = self.pages().living.get_mut(&number)
            {
                living.told = counters;
            }
        }
        let pages = self.pages();
        let mut sum = pages.ended.clone();
        for living in pages.living.values() {
            sum.merge(&living.told);
        }
        sum.count_now(PART, "now", pages.living.len());
        sum.drops(PART, "too_many", self.refused.load(Ordering::Relaxed));
        sum.insert(Counter {
            kind: Kind::Event,
            part: PART,
            name: "joined",
            value: pages.joined,
        });
        sum
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    /// Ends it with this last word.
    pub(super) fn end(mut self, counters: Counters) {
        self.last_word = Some(counters);
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let mut pages = self.book.pages();
        let told = pages.living.remove(&self.number).map(|living| living.told);
        if let Some(counters) = self.last_word.take().or(told) {
            pages.ended.merge_ended(&counters);
        }
    }
}

/// What the numbers of commands stand under.
pub(super) const PART: &str = "commands";

#[cfg(test)]
mod tests {
    use super::*;

    fn drops(value: u64) -> Counters {
        let mut counters = Counters::default();
        counters.drops(PART, "refused", value);
        counters.level("stack", "flows_now", value);
        counters
    }

    fn refused(counters: &Counters) -> u64 {
        counters.value(Kind::Drop, PART, "refused")
    }

    /// Answers one question.
    async fn answer(asked: &mut mpsc::Receiver<Ask>, value: u64) {
        let ask = asked.recv().await.expect("a question");
        ask.send(drops(value)).expect("somebody waits");
    }

    #[tokio::test(start_paused = true)]
    async fn sums_hold_what_commands_have_told_in_whatever_way_they_end() {
        let book = Arc::new(Book::default());
        let (one, mut asked_one) = book.begin();
        let (two, mut asked_two) = book.begin();
        book.refuse();
        let (sum, (), ()) = tokio::join!(
            book.counters(),
            answer(&mut asked_one, 3),
            answer(&mut asked_two, 4)
        );
        assert_eq!(refused(&sum), 7);
        assert_eq!(sum.value(Kind::Level, PART, "now"), 2);
        assert_eq!(sum.value(Kind::Level, "stack", "flows_now"), 7);
        assert_eq!(sum.value(Kind::Event, PART, "joined"), 2);
        assert_eq!(sum.value(Kind::Drop, PART, "too_many"), 1);
        // One says a last word, the other is cut off.
        one.end(drops(10));
        drop(two);
        let sum = book.counters().await;
        assert_eq!(refused(&sum), 14);
        assert_eq!(sum.value(Kind::Level, PART, "now"), 0);
        assert_eq!(sum.value(Kind::Level, "stack", "flows_now"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn numbers_never_go_down_where_two_look_at_once_and_a_command_is_slow() {
        let book = Arc::new(Book::default());
        let (_slow, _never_answers) = book.begin();
        let (_page, mut asked) = book.begin();
        let (one, two, ()) = tokio::join!(book.counters(), book.counters(), async {
            answer(&mut asked, 5).await;
            answer(&mut asked, 6).await;
        });
        assert_eq!((refused(&one), refused(&two)), (5, 6));
        assert_eq!(refused(&book.counters().await), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn command_that_does_not_answer_in_time_counts_as_it_did_before() {
        let book = Arc::new(Book::default());
        let (_page, mut asked) = book.begin();
        let (sum, ()) = tokio::join!(book.counters(), answer(&mut asked, 5));
        assert_eq!(refused(&sum), 5);
        // It takes neither this question nor the next.
        for _ in 0..2 {
            assert_eq!(refused(&book.counters().await), 5);
        }
    }
}
