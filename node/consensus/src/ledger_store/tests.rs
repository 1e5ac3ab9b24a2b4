//! The ledger over a real sled, in a folder of its own.

use std::collections::BTreeMap;
use std::fs;

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, RaftSnapshotBuilder};
use quorun_ledger::{Batch, Command, JobId, JobSpec, Limits, MemoryStore, SourceFile, Transaction};
use tokio::sync::mpsc;

use super::*;
use crate::handle::Notice;
use crate::options::Member;
use crate::types::{EncodedBatch, Entry, Membership};

fn job(number: u64) -> JobId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    JobId::from_slice(&bytes).unwrap()
}

fn submit(number: u64, size: usize) -> Command {
    let byte = u8::try_from(number % 251).unwrap();
    Command::Submit {
        id: job(number),
        spec: JobSpec {
            language: "python".to_owned(),
            files: vec![SourceFile {
                name: "main.py".to_owned(),
                content: Bytes::from(vec![byte; size]),
            }],
            entrypoint: "main.py".to_owned(),
            stdin: Bytes::new(),
            tests: Vec::new(),
            stop_on_failure: false,
            args: Vec::new(),
            env: BTreeMap::new(),
            limits: Limits {
                cpu_ms: 1,
                wall_ms: 1,
                memory_kb: 1,
                processes: 1,
                output_kb: 1,
                ..Limits::default()
            },
            labels: Vec::new(),
            isolation_key: None,
            retention_ms: 0,
            max_attempts: 3,
        },
        key: None,
    }
}

fn batch(commands: Vec<Command>) -> Batch {
    Batch {
        time_ms: 1_000,
        eligible: std::collections::BTreeSet::new(),
        queue: None,
        commands,
    }
}

fn entry(index: u64, commands: Vec<Command>) -> Entry {
    Entry {
        log_id: LogId::new_term_index(1, index),
        payload: EntryPayload::Normal(EncodedBatch::new(&batch(commands))),
    }
}

fn membership_entry(index: u64) -> Entry {
    let members = BTreeMap::from([(7, Member::default())]);
    Entry {
        log_id: LogId::new_term_index(1, index),
        payload: EntryPayload::Membership(
            Membership::new(vec![std::collections::BTreeSet::from([7])], members).unwrap(),
        ),
    }
}

struct Machine {
    machine: StateMachine,
    store: LedgerStore,
    notices: mpsc::UnboundedReceiver<Notice>,
}

fn machine(data_dir: &Path) -> Machine {
    let store = LedgerStore::open(data_dir, None).unwrap();
    let (notify, notices) = mpsc::unbounded_channel();
    let (_, durable) = watch::channel(u64::MAX);
    Machine {
        machine: StateMachine::new(store.clone(), durable, notify),
        store,
        notices,
    }
}

/// All records as sled has them, except for what the database says of itself.
fn raw(store: &LedgerStore) -> Vec<(Vec<u8>, Vec<u8>)> {
    store
        .reading(|tree| {
            tree.iter()
                .map(|pair| pair.map_err(to_io))
                .filter(|pair| !pair.as_ref().is_ok_and(|(key, _)| chunks::is_own(key)))
                .map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())))
                .collect()
        })
        .unwrap()
}

/// The same commands in a ledger in memory.
fn reference(groups: &[Vec<Command>]) -> MemoryStore {
    let mut store = MemoryStore::default();
    for commands in groups {
        let mut transaction = Transaction::begin(&store).unwrap();
        transaction.apply(batch(commands.clone())).unwrap();
        let writes = transaction.finish().unwrap();
        store.commit(writes);
    }
    store
}

fn same(store: &LedgerStore, reference: &MemoryStore) {
    let end = [keys::END];
    let (mut from, mut count) = (Vec::new(), 0);
    while let Some((key, value)) = store.first(&from, &end).unwrap() {
        assert_eq!(
            reference.get(&key).unwrap(),
            Some(value),
            "{}",
            key.escape_ascii()
        );
        from = key.to_vec();
        from.push(0);
        count += 1;
    }
    assert_eq!(count, reference.iter().count());
    let mut to = end.to_vec();
    while let Some((key, value)) = store.last(&[], &to).unwrap() {
        assert_eq!(reference.get(&key).unwrap(), Some(value));
        to = key.to_vec();
        count -= 1;
    }
    assert_eq!(count, 0);
    assert_eq!(
        store.state().1,
        View::new(reference).counters().unwrap().hash
    );
}

#[tokio::test]
async fn records_of_every_size_are_kept_changed_and_removed_like_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut groups: Vec<Vec<Command>> = [10, 8_000, 8_192, 8_193, 100_000, 1 << 20]
        .into_iter()
        .zip(0..)
        .map(|(size, number)| vec![submit(number, size)])
        .collect();
    groups.extend((0..6).map(|number| vec![Command::Cancel { job: job(number) }]));
    groups.push(vec![Command::Expire {
        limit: 3,
        keep_bytes: 0,
    }]);
    let mut m = machine(dir.path());
    for (index, commands) in (0..).zip(&groups) {
        let (replies, _) = m.store.apply(vec![entry(index, commands.clone())]).unwrap();
        assert_eq!(replies[0].0.len(), 1);
        let done = usize::try_from(index).unwrap() + 1;
        same(&m.store, &reference(&groups[..done]));
    }
    let left = raw(&m.store)
        .iter()
        .filter(|(key, _)| key.starts_with(b"zc"))
        .count();
    m.store.close();

    m = machine(dir.path());
    same(&m.store, &reference(&groups));
    assert_eq!(m.store.state().0, Some(LogId::new_term_index(1, 12)));
    // Of the six jobs the three oldest are gone, the chunks of their sources with them.
    assert_eq!(
        left,
        (8_193_usize.div_ceil(8_192)) + 100_000_usize.div_ceil(8_192) + 129
    );
    m.store.close();
    assert_eq!(
        fs::read_dir(dir.path().join("ledger/1/blobs"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn entries_that_come_together_are_answered_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = machine(dir.path());
    let entries = vec![
        entry(0, vec![submit(1, 10), submit(2, 10)]),
        membership_entry(1),
        entry(2, vec![]),
        entry(3, vec![submit(1, 10)]),
    ];
    let items = entries.into_iter().map(|entry| Ok((entry, None)));
    m.machine.apply(futures::stream::iter(items)).await.unwrap();
    let Ok(Notice::Events(events, _)) = m.notices.try_recv() else {
        panic!("no events");
    };
    assert_eq!(events.len(), 2);
    let (applied, membership) = m.machine.applied_state().await.unwrap();
    assert_eq!(applied, Some(LogId::new_term_index(1, 3)));
    assert_eq!(membership.log_id(), &Some(LogId::new_term_index(1, 1)));
    m.store.close();

    let mut m = machine(dir.path());
    assert_eq!(
        m.machine.applied_state().await.unwrap(),
        (applied, membership)
    );
    m.store.close();
}

#[tokio::test]
async fn a_snapshot_makes_another_node_the_same() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut from = machine(here.path());
    for index in 0..300 {
        let size = if index % 50 == 0 { 50_000 } else { 700 };
        let entries = vec![entry(index, vec![submit(index, size)])];
        from.store.apply(entries).unwrap();
    }
    from.store.apply(vec![membership_entry(300)]).unwrap();
    assert!(from.machine.get_current_snapshot().await.unwrap().is_none());
    let mut builder = from
        .machine
        .try_create_snapshot_builder(true)
        .await
        .unwrap();
    let built = builder.build_snapshot().await.unwrap();
    assert_eq!(built.meta.last_log_id, Some(LogId::new_term_index(1, 300)));

    // What the other node had before is gone, and a received file takes its place.
    let mut to = machine(there.path());
    to.store
        .apply(vec![entry(0, vec![submit(9_999, 20_000)])])
        .unwrap();
    let received = snapshot_folder(there.path()).join("0.receiving");
    fs::copy(&built.snapshot.path, &received).unwrap();
    let file = SnapshotFile::open(received.clone()).unwrap();
    to.machine
        .install_snapshot(&built.meta, file)
        .await
        .unwrap();
    assert_eq!(to.store.state(), from.store.state());
    assert_eq!(raw(&to.store), raw(&from.store));
    assert_eq!(
        to.machine.applied_state().await.unwrap(),
        from.machine.applied_state().await.unwrap()
    );
    assert!(matches!(to.notices.try_recv(), Ok(Notice::Reset)));
    assert!(!received.exists());
    let current = to.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta, built.meta);
    let databases = |dir: &Path| {
        let dirs = fs::read_dir(dir.join("ledger")).unwrap();
        dirs.filter(|entry| entry.as_ref().unwrap().path().is_dir())
            .count()
    };
    assert_eq!(databases(there.path()), 1);

    // Both go on alike, and the installed ledger is there after a restart.
    for m in [&from, &to] {
        m.store
            .apply(vec![entry(301, vec![submit(301, 9_000)])])
            .unwrap();
    }
    assert_eq!(to.store.state(), from.store.state());
    to.store.close();
    let to = machine(there.path());
    assert_eq!(to.store.state(), from.store.state());
    to.store.close();
    from.store.close();
}

#[tokio::test]
async fn a_snapshot_shows_one_moment_while_the_ledger_goes_on() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = machine(here.path());
    let fill: Vec<_> = (0..2_000).map(|number| submit(number, 300)).collect();
    from.store.apply(vec![entry(0, fill)]).unwrap();
    let at_start = raw(&from.store);
    let hash = from.store.state().1;

    // Changes in front of the builder, behind it, and of what it has not yet seen: by single steps.
    let store = &from.store;
    store.inner.current.write().building = Some(Progress::default());
    let meta = store.meta();
    let (mut seen, mut index) = (Vec::new(), 1);
    loop {
        let step = {
            let mut current = store.inner.current.write();
            let disk = current.disk.clone().unwrap();
            current
                .building
                .as_mut()
                .unwrap()
                .step(disk.tree())
                .unwrap()
        };
        let Some(pairs) = step else { break };
        seen.extend(pairs.into_iter().map(|(key, value)| (key, value.to_vec())));
        let commands = vec![
            Command::Cancel {
                job: job(index * 7 % 2_000),
            },
            submit(10_000 + index, 20_000),
            Command::Cancel {
                job: job(1_999 - index),
            },
            Command::Expire {
                limit: 1,
                keep_bytes: 0,
            },
        ];
        store.apply(vec![entry(index, commands)]).unwrap();
        index += 1;
    }
    store.inner.current.write().building = None;
    assert!(index > 5, "the ledger is too small for this test: {index}");
    assert_eq!(seen, at_start);
    assert_ne!(raw(store), at_start);

    // And by the builder itself, beside a thread that writes.
    let writing = from.store.clone();
    let writer = std::thread::spawn(move || {
        for index in index..index + 200 {
            let commands = vec![
                Command::Cancel { job: job(index) },
                submit(20_000 + index, 9_000),
            ];
            writing.apply(vec![entry(index, commands)]).unwrap();
        }
    });
    let built = from.store.build().unwrap();
    writer.join().unwrap();
    let to = machine(there.path());
    let copy = there.path().join("copy");
    fs::copy(&built.snapshot.path, &copy).unwrap();
    to.store
        .install(&built.meta, SnapshotFile::open(copy).unwrap())
        .unwrap();
    let (applied, installed) = to.store.state();
    assert_eq!(applied, built.meta.last_log_id);
    assert_eq!(hash_of(&to.store), installed);
    assert_ne!(meta.applied, applied);
    assert_ne!(hash, installed);
    from.store.close();
    to.store.close();
}

/// The hash as the records themselves give it.
fn hash_of(store: &LedgerStore) -> StateHash {
    let mut hash = StateHash::default();
    let mut from = Vec::new();
    while let Some((key, value)) = store.first(&from, &[keys::END]).unwrap() {
        if *key != *keys::COUNTERS {
            hash.add(&key, &value);
        }
        from = key.to_vec();
        from.push(0);
    }
    hash
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_the_ledger_stays() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = machine(here.path());
    from.store
        .apply(vec![entry(0, vec![submit(1, 100_000)])])
        .unwrap();
    let built = from.store.build().unwrap();
    let good = fs::read(&built.snapshot.path).unwrap();

    let to = machine(there.path());
    to.store.apply(vec![entry(0, vec![submit(2, 10)])]).unwrap();
    let before = to.store.state();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut longer = good.clone();
    longer.push(0);
    for wrong in [
        &good[..good.len() - 3],
        &good[..good.len() / 2],
        &flipped,
        &longer,
        &[],
    ] {
        let path = there.path().join("wrong");
        fs::write(&path, wrong).unwrap();
        let error = to
            .store
            .install(&built.meta, SnapshotFile::open(path).unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("snapshot"), "{error}");
        assert_eq!(to.store.state(), before);
    }
    to.store.close();
    let to = machine(there.path());
    assert_eq!(to.store.state(), before);
    to.store.close();
    from.store.close();
}

#[tokio::test]
async fn what_a_crash_leaves_of_a_snapshot_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let m = machine(dir.path());
    m.store.apply(vec![entry(0, vec![submit(1, 10)])]).unwrap();
    let first = m.store.build().unwrap().snapshot.path;
    m.store.apply(vec![entry(1, vec![submit(2, 10)])]).unwrap();
    let second = m.store.build().unwrap().snapshot.path;
    assert!(!first.exists() && second.exists());
    let state = m.store.state();
    m.store.close();

    fs::copy(&second, &first).unwrap();
    let folder = snapshot_folder(dir.path());
    for left in ["00-01.building", "3.receiving"] {
        fs::write(folder.join(left), b"half").unwrap();
    }
    let half = dir.path().join("ledger/2");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("db"), b"half").unwrap();
    fs::write(dir.path().join("ledger/current.tmp"), b"").unwrap();

    let mut m = machine(dir.path());
    assert_eq!(m.store.state(), state);
    assert!(!half.exists());
    let left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(left, [second]);
    let current = m.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(LogId::new_term_index(1, 1)));
    m.store.close();
}

#[tokio::test]
async fn entries_wait_until_the_log_has_them_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = LedgerStore::open(dir.path(), None).unwrap();
    let (notify, _notices) = mpsc::unbounded_channel();
    let (on_disk, durable) = watch::channel(1);
    let mut machine = StateMachine::new(store.clone(), durable, notify);
    let applying = tokio::spawn(async move {
        let items = [
            Ok((entry(0, vec![submit(1, 10)]), None)),
            Ok((entry(1, vec![]), None)),
        ];
        machine.apply(futures::stream::iter(items)).await
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.state().0, None);
    on_disk.send_replace(2);
    applying.await.unwrap().unwrap();
    assert_eq!(store.state().0, Some(LogId::new_term_index(1, 1)));
    store.close();
    store.view().counters().unwrap_err();
}

fn id(index: u64) -> LogId {
    LogId::new_term_index(1, index)
}

/// A ledger of a hundred jobs, with a snapshot behind the sixtieth, and what a log has that was purged behind the
/// fortieth.
fn with_snapshot(data_dir: &Path) -> (LogRange, StateHash, StateHash) {
    let m = machine(data_dir);
    let mut at_snapshot = StateHash::default();
    for index in 0..100 {
        let size = if index % 10 == 0 { 30_000 } else { 500 };
        let entries = vec![entry(index, vec![submit(index, size)])];
        m.store.apply(entries).unwrap();
        if index == 60 {
            m.store.build().unwrap();
            at_snapshot = m.store.state().1;
        }
    }
    let end = m.store.state().1;
    m.store.close();
    let log = LogRange {
        purged: Some(id(40)),
        last: Some(id(99)),
        voted: true,
    };
    (log, at_snapshot, end)
}

fn current_db(data_dir: &Path) -> std::path::PathBuf {
    let current = fs::read_to_string(data_dir.join("ledger/current")).unwrap();
    data_dir.join("ledger").join(current.trim()).join("db")
}

#[test]
fn a_ledger_that_is_lost_is_made_anew_from_the_snapshot() {
    type Damage = fn(&Path);
    let damages: [Damage; 3] = [
        |dir| fs::remove_dir_all(dir.join("ledger")).unwrap(),
        |dir| {
            let db = fs::OpenOptions::new().write(true).open(current_db(dir));
            db.unwrap().set_len(0).unwrap();
        },
        |dir| fs::write(dir.join("ledger/current"), "nothing").unwrap(),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let (log, at_snapshot, end) = with_snapshot(dir.path());
        damage(dir.path());
        let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
        assert_eq!(
            store.state(),
            (Some(id(60)), at_snapshot),
            "damage {number}"
        );
        store.check_not_ahead(log).unwrap();
        store.check().unwrap();
        for index in 61..100 {
            let size = if index % 10 == 0 { 30_000 } else { 500 };
            let entries = vec![entry(index, vec![submit(index, size)])];
            store.apply(entries).unwrap();
        }
        assert_eq!(store.state().1, end, "damage {number}");
        store.close();
        let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
        assert_eq!(store.state(), (Some(id(99)), end));
        store.close();
    }
}

#[test]
fn a_ledger_that_is_lost_without_a_snapshot_that_reaches_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, ..) = with_snapshot(dir.path());
    fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    let purged = Some(id(70));
    let error = LedgerStore::open(dir.path(), Some(LogRange { purged, ..log })).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("begins behind 71"), "{text}");
    assert!(text.contains("a node with a new id"), "{text}");
    // With a log that has everything it starts from nothing.
    let all = LogRange {
        purged: None,
        ..log
    };
    fs::remove_dir_all(dir.path().join("snapshots")).unwrap();
    let store = LedgerStore::open(dir.path(), Some(all)).unwrap();
    assert_eq!(store.state().0, None);
    store.close();
}

#[test]
fn a_snapshot_that_ends_before_the_log_begins_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _, end) = with_snapshot(dir.path());
    let purged = Some(id(70));
    let store = LedgerStore::open(dir.path(), Some(LogRange { purged, ..log })).unwrap();
    assert_eq!(store.state(), (Some(id(99)), end));
    assert!(store.current_snapshot().unwrap().is_none());
    store.close();
}

#[test]
fn a_log_that_is_older_than_the_ledger_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, ..) = with_snapshot(dir.path());
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    let refused = |last: Option<LogId>, voted: bool| {
        let purged = Some(id(40));
        let range = LogRange {
            purged,
            last,
            voted,
        };
        store.check_not_ahead(range).is_err()
    };
    assert!(!refused(Some(id(99)), true));
    assert!(refused(Some(id(98)), true));
    assert!(refused(None, false));
    // Just behind the installing of a snapshot the log has not yet heard of it; but there is one.
    store.build().unwrap();
    assert!(!refused(Some(id(98)), true));
    assert!(refused(None, false));
    store.close();
}

#[test]
fn a_value_that_is_not_what_was_written_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, ..) = with_snapshot(dir.path());
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    store.check().unwrap();
    let keys: Vec<_> = raw(&store).into_iter().map(|(key, _)| key).collect();
    let tree = store
        .inner
        .current
        .read()
        .disk
        .as_ref()
        .unwrap()
        .tree()
        .clone();
    for key in keys {
        let good = tree.get(&key).unwrap().unwrap();
        let mut flipped = good.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 4;
        tree.insert(&key, flipped).unwrap();
        let error = store.check().unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
        store.build().unwrap_err();
        tree.insert(&key, good.clone()).unwrap();
        // Missing, or with the value of another time.
        if key != keys::COUNTERS {
            let mut removal = crate::disk::Batch::default();
            removal.remove(key.as_slice());
            tree.apply_batch(removal).unwrap();
            store.check().unwrap_err();
            if !key.starts_with(b"zc") {
                tree.insert(&key, chunks::whole(&key, b"another")).unwrap();
                store.check().unwrap_err();
            }
        }
        tree.insert(&key, good).unwrap();
    }
    store.check().unwrap();
    store.close();
}

#[test]
fn a_newer_format_is_refused_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (log, ..) = with_snapshot(dir.path());
    let disk = Disk::open(current_db(dir.path()).parent().unwrap(), CACHE).unwrap();
    let newer = chunks::whole(b"zf", b"QUORUNLG\x07");
    disk.tree().insert(b"zf", newer).unwrap();
    disk.sync().unwrap();
    drop(disk);
    for _ in 0..2 {
        let error = LedgerStore::open(dir.path(), Some(log)).unwrap_err();
        assert!(matches!(error, Error::Newer { .. }), "{error}");
        assert!(error.to_string().contains("format 7"), "{error}");
    }
}
