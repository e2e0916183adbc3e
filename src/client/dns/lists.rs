//! Lists of names: read from their files, fetched through the tunnel when their time has come, and kept.
//!
//! # Theory of operation
//!
//! ```text
//!  start: files, kept copies ──read──▶ tables ──▶ policy         (before the first question)
//!
//!  then:  ┌─ a file has changed (looked at every minute) ────────────────┐
//!         └─ a URL is due ──fetch──▶ temporary file ──names in it?──▶ kept ┴─▶ all are read anew ─▶ policy
//! ```
//!
//! A list that is fetched replaces its kept copy whole, and only when it holds names: a page of a captive portal does not.
//! While it cannot be fetched the copy serves, however old; the next attempt is made after a minute, then two, and so on
//! up to an hour. At a start the copy is used at once, and fetched anew if it is older than `refresh`.
//!
//! All lists are read into one table for what is blocked and one for what is allowed, beside the old ones, which then
//! go: nothing is half there at any time. Of a list that cannot be read at that moment the former names are taken over.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::engine::Dns;
use super::fetch::{FetchError, fetch};
use super::list::{self, ListReport};
use super::policy::Lists;
use super::stats::count;
use super::table::Scope;
use crate::client::resolve::Resolver;
use crate::client::tunnel::Tunnel;
use crate::config::{DnsConfig, ListSource, MAX_LIST};
use crate::io::clock;
use crate::io::file::open_regular;
use crate::io::resolver::{Stamp, stamp};
use crate::io::tls::origin_config;

/// The lists of a configuration, and where copies of those that are fetched lie.
#[derive(Debug)]
pub struct ListStore {
    lists: Vec<Listing>,
    folder: Option<Folder>,
}

/// One list.
#[derive(Clone, Debug)]
struct Listing {
    source: ListSource,
    /// Whether it stands under `allow`.
    allows: bool,
}

#[derive(Debug)]
enum Folder {
    Kept(PathBuf),
    /// For as long as the process lives, where nothing can be kept.
    Passing(tempfile::TempDir),
}

/// What became of one list.
#[derive(Debug)]
pub struct ListOutcome {
    /// Where it comes from.
    pub source: ListSource,
    /// What was read, or why nothing.
    pub outcome: Result<ListReport, ListError>,
}

/// Why a list was not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListError {
    /// It has not been fetched yet.
    #[error("not fetched yet")]
    NotFetched,
    /// Its file cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
}

impl ListStore {
    /// Takes the lists of `config`; copies are kept only while the process lives where `cache_dir` cannot be used.
    ///
    /// # Errors
    /// There is no folder even for that.
    pub fn new(config: &DnsConfig) -> io::Result<Self> {
        let listing = |allows| {
            move |source: &ListSource| Listing {
                source: source.clone(),
                allows,
            }
        };
        let lists: Vec<Listing> = (config.block.iter().map(listing(false)))
            .chain(config.allow.iter().map(listing(true)))
            .collect();
        let fetched = |listing: &Listing| matches!(listing.source, ListSource::Url(_));
        let folder = if !lists.iter().any(fetched) {
            None
        } else if let Some(kept) = config.cache_dir.as_deref().and_then(kept_folder) {
            Some(Folder::Kept(kept))
        } else {
            Some(Folder::Passing(tempfile::tempdir()?))
        };
        Ok(Self { lists, folder })
    }

    /// Tries to open each list that is a file, and waits for none.
    ///
    /// # Errors
    /// One cannot be, is no regular file, or is longer than any list; the text names it.
    pub fn check_files(&self) -> Result<(), String> {
        for listing in &self.lists {
            if let ListSource::File(path) = &listing.source {
                let what = if listing.allows {
                    "dns.allow"
                } else {
                    "dns.block"
                };
                let told = |error| format!("{what}: {}: {error}", listing.source);
                open_regular(path, MAX_LIST).map_err(told)?;
            }
        }
        Ok(())
    }

    /// Looks at the files and the kept copies as they are, which has to be done before they are read.
    pub fn look(&self) -> Seen {
        let lists = self.lists.iter();
        Seen(
            lists
                .map(|listing| self.path(&listing.source).and_then(|path| stamp(&path)))
                .collect(),
        )
    }

    /// Whether there is any list.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Reads all of them, as far as they are there. Takes some 100 ms for half a million names.
    pub fn read(&self) -> (Lists, Vec<ListOutcome>) {
        self.read_after(&Lists::default())
    }

    /// Reads all of them again; of what cannot be read now, the names stay that were `former`ly read by this store.
    fn read_after(&self, former: &Lists) -> (Lists, Vec<ListOutcome>) {
        let mut lists = Lists {
            block: former.block.successor(),
            allow: former.allow.successor(),
            labels: self
                .lists
                .iter()
                .map(|listing| listing.source.to_string())
                .collect(),
        };
        let mut outcomes = Vec::with_capacity(self.lists.len());
        for (number, listing) in self.lists.iter().enumerate() {
            let number = u8::try_from(number).unwrap_or(u8::MAX);
            let outcome = self
                .path(&listing.source)
                .ok_or(ListError::NotFetched)
                .and_then(|path| match open_regular(&path, MAX_LIST) {
                    Ok(file) => Ok(file),
                    Err(error)
                        if error.kind() == io::ErrorKind::NotFound
                            && matches!(listing.source, ListSource::Url(_)) =>
                    {
                        Err(ListError::NotFetched)
                    }
                    Err(error) => Err(error.into()),
                })
                .and_then(|file| Ok(take(file, listing.allows, number, &mut lists)?));
            if outcome.is_err() {
                lists.block.take_over(&former.block, number);
                lists.allow.take_over(&former.allow, number);
            }
            outcomes.push(ListOutcome {
                source: listing.source.clone(),
                outcome,
            });
        }
        (lists, outcomes)
    }

    /// Where a list lies, or would lie.
    fn path(&self, source: &ListSource) -> Option<PathBuf> {
        match source {
            ListSource::File(path) => Some(path.clone()),
            ListSource::Url(url) => {
                let name: String = (digest(&SHA256, url.as_bytes()).as_ref().iter())
                    .take(NAME_LEN)
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                Some(self.folder.as_ref()?.path().join(format!("{name}.list")))
            }
        }
    }

    /// Fetches one list and puts it in the place of its copy.
    async fn fetch(
        &self,
        source: &ListSource,
        resolver: &Resolver,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<(), FetchError> {
        let (ListSource::Url(url), Some(folder)) = (source, &self.folder) else {
            return Ok(());
        };
        let file = tempfile::Builder::new()
            .prefix(".list-")
            .tempfile_in(folder.path())
            .map_err(FetchError::Keep)?;
        let mut file = BufWriter::new(file);
        fetch(url, resolver, tls, &mut file).await?;
        let file = (file.into_inner()).map_err(|error| FetchError::Keep(error.into_error()))?;
        let path = self.path(source);
        let kept = spawn_blocking(move || {
            let read = BufReader::new(file.reopen().map_err(FetchError::Keep)?);
            let report = list::read(read, |_| true).map_err(FetchError::Keep)?;
            if report.names == 0 {
                return Err(FetchError::NoNames);
            }
            file.as_file().sync_all().map_err(FetchError::Keep)?;
            let Some(path) = path else { return Ok(()) };
            let persisted = file.persist(&path);
            persisted.map_err(|error| FetchError::Keep(error.error))?;
            Ok(())
        });
        kept.await
            .map_err(|error| FetchError::Keep(io::Error::other(error)))?
    }
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Passing(folder) => folder.path(),
        }
    }
}

/// Makes the folder of copies, if it can be made and written to.
fn kept_folder(cache: &Path) -> Option<PathBuf> {
    let folder = cache.join("lists");
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .and_then(|()| tempfile::tempfile_in(&folder)?.write_all(b"\n"));
    match made {
        Ok(()) => Some(folder),
        Err(error) => {
            warn!(%error, folder = %folder.display(), "fetched lists are not kept for the next start");
            None
        }
    }
}

/// One that grows while it is read is read to its bound.
fn bounded(file: File) -> impl BufRead {
    BufReader::with_capacity(READ, file.take(MAX_LIST))
}

/// Reads one list into the tables.
fn take(file: File, allows: bool, number: u8, lists: &mut Lists) -> io::Result<ListReport> {
    let (block, allow) = (&mut lists.block, &mut lists.allow);
    list::read(bounded(file), |entry| {
        let table = if allows || entry.exception {
            &mut *allow
        } else {
            &mut *block
        };
        // What an allow list names is free with all that is below it, in whatever format it is written.
        let scope = if allows {
            Scope::Subdomains
        } else {
            entry.scope
        };
        table.insert(entry.name.as_bytes(), scope, number).is_ok()
    })
}

/// One state of the lists of a store, whose changes are noticed.
#[derive(Debug)]
pub struct Seen(Vec<Option<Stamp>>);

/// One state of the files among the lists of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamps(Vec<Option<Stamp>>);

impl Stamps {
    /// Looks at the files.
    pub fn now(config: &DnsConfig) -> Self {
        let lists = (config.block.iter()).chain(&config.allow);
        let files = lists.filter_map(|source| match source {
            ListSource::File(path) => Some(stamp(path)),
            ListSource::Url(_) => None,
        });
        Self(files.collect())
    }
}

/// Reads the files among the lists of `config`, and words what should be looked at: lines that are not used, a list
/// without names. Nothing is fetched.
pub fn check(config: &DnsConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    for source in config.block.iter().chain(&config.allow) {
        let ListSource::File(path) = source else {
            continue;
        };
        let read =
            open_regular(path, MAX_LIST).and_then(|file| list::read(bounded(file), |_| true));
        match read {
            Ok(report) if report.bad == 0 && report.names > 0 => {}
            Ok(report) => warnings.push(format!("{source}: {report}")),
            Err(error) => warnings.push(format!("{source}: {error}")),
        }
    }
    warnings
}

/// Tells the log what became of lists.
pub fn tell(outcomes: &[ListOutcome]) {
    for told in outcomes {
        match &told.outcome {
            Ok(report) => info!(list = %told.source, "{report}"),
            Err(ListError::NotFetched) => info!(list = %told.source, "not fetched yet"),
            Err(error) => warn!(list = %told.source, %error, "a list cannot be read"),
        }
    }
}

/// Keeps the lists of a running client up to date.
pub struct ListService {
    store: Arc<ListStore>,
    turns: Vec<Turn>,
    seen: Seen,
    refresh: Duration,
    dns: Dns,
    resolver: Resolver,
    tunnel: Tunnel,
}

/// When a list is fetched next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    at: Instant,
    failures: u32,
}

impl Turn {
    /// The first, of a list whose copy has some age, if there is one.
    fn first(now: Instant, age: Option<Duration>, refresh: Duration) -> Self {
        Self {
            at: now + age.map_or(Duration::ZERO, |age| refresh.saturating_sub(age)),
            failures: 0,
        }
    }

    fn after_success(now: Instant, refresh: Duration) -> Self {
        Self {
            at: now + refresh,
            failures: 0,
        }
    }

    fn after_failure(self, now: Instant, refresh: Duration) -> Self {
        let wait = FIRST_RETRY * 2_u32.saturating_pow(self.failures.min(16));
        Self {
            at: now + wait.min(LAST_RETRY).min(refresh),
            failures: self.failures.saturating_add(1),
        }
    }
}

impl ListService {
    /// Takes over lists that have been read, and were `seen` before that.
    pub fn new(
        config: &DnsConfig,
        store: ListStore,
        seen: Seen,
        dns: Dns,
        resolver: Resolver,
        tunnel: Tunnel,
    ) -> Self {
        let now = clock::now();
        let path = |listing: &Listing| store.path(&listing.source);
        let age = |listing: &Listing| {
            let modified = fs::metadata(path(listing)?).ok()?.modified().ok()?;
            // A copy from the future is as good as new.
            Some(modified.elapsed().unwrap_or(Duration::ZERO))
        };
        Self {
            turns: (store.lists.iter())
                .map(|listing| Turn::first(now, age(listing), config.refresh))
                .collect(),
            seen,
            store: Arc::new(store),
            refresh: config.refresh,
            dns,
            resolver,
            tunnel,
        }
    }

    /// Fetches and reads whatever is due, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        if self.store.is_empty() {
            return;
        }
        tokio::select! {
            // First: what it has just read is not to take the place of its successor's.
            biased;
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        loop {
            let now = clock::now();
            let due = |listing: &&Listing, turn: &&Turn| {
                matches!(listing.source, ListSource::Url(_)) && turn.at <= now
            };
            let any = (self.store.lists.iter().zip(&self.turns))
                .any(|(listing, turn)| due(&listing, &turn));
            if any {
                // Without a session it would only fail, and wait; files are looked at meanwhile.
                let mut inner = self.tunnel.inner();
                let session = async { inner.wait_for(Option::is_some).await.is_ok() };
                match timeout(LOOK_EVERY, session).await {
                    Ok(true) => self.fetch_due().await,
                    Ok(false) => return,
                    Err(_elapsed) => {}
                }
            }
            if self.changed() {
                self.read_anew().await;
            }
            let next = (self.store.lists.iter().zip(&self.turns))
                .filter(|(listing, _)| matches!(listing.source, ListSource::Url(_)))
                .map(|(_, turn)| turn.at)
                .min();
            let look = clock::now() + LOOK_EVERY;
            sleep_until(next.map_or(look, |next| next.min(look)).into()).await;
        }
    }

    async fn fetch_due(&mut self) {
        let store = Arc::clone(&self.store);
        for (listing, turn) in store.lists.iter().zip(&mut self.turns) {
            let ListSource::Url(url) = &listing.source else {
                continue;
            };
            if turn.at > clock::now() {
                continue;
            }
            // Read each time: authorities may be installed meanwhile.
            let tls = if url.starts_with("https") {
                origin_config().ok().map(Arc::new)
            } else {
                None
            };
            let fetched = store.fetch(&listing.source, &self.resolver, tls).await;
            let stats = self.dns.stats();
            *turn = match fetched {
                Ok(()) => {
                    count(&stats.lists_fetched);
                    Turn::after_success(clock::now(), self.refresh)
                }
                Err(error) => {
                    count(&stats.lists_failed);
                    let turn = turn.after_failure(clock::now(), self.refresh);
                    let again = turn.at.saturating_duration_since(clock::now());
                    warn!(list = url, %error, again_in = ?again, "a list was not fetched");
                    turn
                }
            };
        }
    }

    /// Whether any file is another than when it was read last.
    fn changed(&mut self) -> bool {
        let mut changed = false;
        let Seen(now) = self.store.look();
        for (now, seen) in now.into_iter().zip(&mut self.seen.0) {
            // A file that is gone for a moment, while somebody writes it, changes nothing.
            if now.is_some() && now != *seen {
                *seen = now;
                changed = true;
            }
        }
        changed
    }

    async fn read_anew(&self) {
        let store = Arc::clone(&self.store);
        let former = self.dns.policy();
        // A panic there would be one of the reader, and the former lists stay.
        let Ok((lists, outcomes)) = spawn_blocking(move || store.read_after(former.lists())).await
        else {
            warn!("reading the lists has failed; the former ones stay");
            return;
        };
        tell(&outcomes);
        if outcomes.iter().any(|told| told.outcome.is_err()) {
            warn!("of lists that cannot be read now, the names stay that were read before");
        }
        self.dns.change_policy(|policy| policy.with_lists(lists));
    }
}

/// Bytes of a URL's digest that name its copy.
const NAME_LEN: usize = 16;
/// Bytes read at a time.
const READ: usize = 256 << 10;
/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// When a list that was not fetched is tried again, doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// The longest of these.
const LAST_RETRY: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tokio::sync::watch;

    use super::super::domain::Domain;
    use super::super::policy::{Decision, Policy};
    use super::*;
    use crate::client::tunnel::tunnel;

    #[test]
    fn failures_wait_longer_each_time_and_never_longer_than_the_schedule() {
        let now = Instant::now();
        let day = Duration::from_secs(24 * 3600);
        let minute = Duration::from_secs(60);
        assert_eq!(Turn::first(now, None, day).at, now);
        assert_eq!(Turn::first(now, Some(minute), day).at, now + day - minute);
        assert_eq!(Turn::first(now, Some(2 * day), day).at, now);
        let mut turn = Turn::first(now, None, day);
        let waits: Vec<u64> = (0..9)
            .map(|_| {
                turn = turn.after_failure(now, day);
                (turn.at - now).as_secs() / 60
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(turn.after_failure(now, minute / 2).at, now + minute / 2);
        assert_eq!(Turn::after_success(now, day).failures, 0);
    }

    #[test]
    fn file_that_changes_while_it_is_read_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block");
        fs::write(&path, "a.test\n").unwrap();
        let config = DnsConfig {
            block: vec![ListSource::File(path.clone())],
            ..DnsConfig::default()
        };
        let store = ListStore::new(&config).unwrap();
        let (tunnel, _commands) = tunnel(watch::channel(None).1);
        let dns = Dns::plain(tunnel.clone());
        let resolver = Resolver::over(tunnel.clone(), dns.clone());
        let seen = store.look();
        store.read();
        fs::write(&path, "a.test\nb.test\n").unwrap();
        let mut service = ListService::new(&config, store, seen, dns, resolver, tunnel);
        assert!(service.changed());
        assert!(!service.changed());
    }

    #[test]
    fn names_of_a_list_that_cannot_be_read_again_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("one"), "one.test\n@@||free.two.test^\n").unwrap();
        fs::write(path("two"), "two.test\n").unwrap();
        let config = DnsConfig {
            block: vec![ListSource::File(path("one")), ListSource::File(path("two"))],
            ..DnsConfig::default()
        };
        let store = ListStore::new(&config).unwrap();
        let (former, _) = store.read();
        // Root reads whatever its mode is.
        fs::remove_file(path("one")).unwrap();
        fs::create_dir(path("one")).unwrap();
        fs::write(path("two"), "two.test\nthree.test\n").unwrap();
        let (lists, outcomes) = store.read_after(&former);
        assert!(outcomes[0].outcome.is_err() && outcomes[1].outcome.is_ok());
        let has = |lists: &Lists, name: &str| {
            let name = Domain::new(&Name::from_ascii(name).unwrap());
            let policy = Policy::default().with_lists(lists.clone());
            matches!(policy.decide(&name), Decision::Blocked(_))
        };
        for name in ["one.test", "two.test", "three.test"] {
            assert!(has(&lists, name), "{name}");
        }
        assert!(!has(&lists, "free.two.test"));
        // What is there again is what it says, and no more.
        fs::remove_dir(path("one")).unwrap();
        fs::write(path("one"), "four.test\n").unwrap();
        let (lists, _) = store.read_after(&lists);
        assert!(has(&lists, "four.test") && !has(&lists, "one.test"));
        assert!(has(&lists, "free.two.test"));
    }

    #[test]
    fn list_that_is_no_file_or_has_no_end_is_refused_and_waited_for_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, huge) = (folder.path().join("fifo"), folder.path().join("huge"));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let file = File::create(&huge).unwrap();
        file.set_len(MAX_LIST + 1).unwrap();
        for (path, why) in [
            (fifo, "this is a FIFO, not a file".to_owned()),
            (
                PathBuf::from("/dev/zero"),
                "this is a device, not a file".to_owned(),
            ),
            (
                huge,
                format!(
                    "it has {} bytes, and no more than {MAX_LIST} are read",
                    MAX_LIST + 1
                ),
            ),
        ] {
            let told = format!("{}: {why}", path.display());
            let config = DnsConfig {
                block: vec![ListSource::File(path)],
                ..DnsConfig::default()
            };
            let store = ListStore::new(&config).unwrap();
            assert_eq!(
                store.check_files().unwrap_err(),
                format!("dns.block: {told}")
            );
            assert_eq!(check(&config), [told]);
            let (lists, outcomes) = store.read();
            assert!(lists.block.is_empty());
            assert_eq!(outcomes[0].outcome.as_ref().unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn lists_are_read_with_their_names_and_what_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            ListSource::File(path)
        };
        let block = write(
            "block",
            "0.0.0.0 exact.test\nwide.test\n@@||free.wide.test^\nbad line\n",
        );
        let allow = write("allow", "0.0.0.0 ok.wide.test\n");
        let gone = ListSource::File(folder.path().join("gone"));
        let url = ListSource::Url("https://lists.test/a".to_owned());
        let config = DnsConfig {
            block: vec![block.clone(), gone.clone(), url.clone()],
            allow: vec![allow],
            cache_dir: Some(folder.path().join("cache")),
            ..DnsConfig::default()
        };
        let store = ListStore::new(&config).unwrap();
        let (lists, outcomes) = store.read();
        let told: Vec<String> = outcomes
            .iter()
            .map(|told| match &told.outcome {
                Ok(report) => report.to_string(),
                Err(error) => error.to_string(),
            })
            .collect();
        assert_eq!(
            told[0],
            "3 names; 1 line not used, first line 4, which has no host name where one is expected"
        );
        assert!(told[1].contains("No such file"), "{}", told[1]);
        assert_eq!(told[2..], ["not fetched yet", "1 name"]);
        let policy = Policy::default().with_lists(lists);
        let blocked = |name: &str| {
            let name = Domain::new(&Name::from_ascii(name).unwrap());
            if let Decision::Blocked(listed) = policy.decide(&name) {
                Some(listed.list.to_owned())
            } else {
                None
            }
        };
        assert_eq!(blocked("exact.test"), Some(block.to_string()));
        assert_eq!(blocked("x.exact.test"), None);
        assert_eq!(blocked("x.wide.test"), Some(block.to_string()));
        assert_eq!(blocked("x.free.wide.test"), None);
        assert_eq!(blocked("x.ok.wide.test"), None);
        // The next start finds what was kept.
        let kept = store.path(&url).unwrap();
        fs::write(kept, "kept.test\n").unwrap();
        let (lists, _) = ListStore::new(&config).unwrap().read();
        let policy = Policy::default().with_lists(lists);
        let name = Domain::new(&Name::from_ascii("kept.test").unwrap());
        assert_eq!(
            policy.explain(&name).to_string(),
            "blocked: https://lists.test/a has kept.test"
        );
    }
}
