//! The ledger in a folder of its own.

use std::collections::BTreeMap;
use std::fs;

use openraft::EntryPayload;
use openraft::storage::RaftStateMachine;
use proptest::prelude::*;
use quorun_ledger::{
    Batch, Command, Counters, JobId, JobSpec, Limits, MemoryStore, SourceFile, Transaction,
};
use tokio::sync::mpsc;

use super::check::Changes;
use super::*;
use crate::disk::{Batch as DiskBatch, Disk};
use crate::handle::Notice;
use crate::options::Member;
use crate::types::{EncodedBatch, Entry, Membership, Snapshot};

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
            definition: None,
            files: vec![SourceFile {
                name: "main.py".to_owned(),
                content: Bytes::from(vec![byte; size]),
            }],
            entrypoint: "main.py".to_owned(),
            stdin: Bytes::new(),
            tests: Vec::new(),
            interactive: false,
            terminal: None,
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
            owner: None,
            retention_ms: 0,
            max_attempts: 3,
            ..JobSpec::default()
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

/// All pairs of all layers.
fn raw(store: &LedgerStore) -> Vec<RawPair> {
    store.layers_of(Layers::all).unwrap().unwrap()
}

/// Merges until there is nothing to merge, whoever does it.
fn merged(store: &LedgerStore) {
    while store.merge().unwrap() == merge::Merged::Some {}
}

/// The file into which a snapshot is received.
fn received(snapshot: Snapshot, data_dir: &Path) -> PathBuf {
    let path = snapshot_folder(data_dir).join("0.receiving");
    let mut reader = snapshot.snapshot.reader().unwrap();
    let length = reader.length();
    let written = std::io::copy(&mut reader, &mut fs::File::create(&path).unwrap()).unwrap();
    assert_eq!(written, length);
    path
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
    let fill: Vec<_> = (0..300)
        .map(|number| submit(number, if number % 40 == 0 { 30_000 } else { 200 }))
        .collect();
    from.store.apply(vec![entry(0, fill)]).unwrap();
    from.store.apply(vec![membership_entry(1)]).unwrap();
    // Several runs, with removals in the newer ones.
    for index in 2..6 {
        let commands = vec![
            Command::Cancel {
                job: job(index * 40),
            },
            Command::Expire {
                limit: 1,
                keep_bytes: 0,
            },
        ];
        from.store.apply(vec![entry(index, commands)]).unwrap();
        from.store.build().unwrap();
    }
    let built = from.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(built.meta.last_log_id, Some(id(5)));

    // What the other node had before is gone.
    let mut to = machine(there.path());
    to.store
        .apply(vec![entry(0, vec![submit(9_999, 20_000)])])
        .unwrap();
    to.store.build().unwrap();
    let meta = built.meta.clone();
    let path = received(built, there.path());
    let file = SnapshotFile::open_received(Received::at(path.clone()), &meta).unwrap();
    to.machine.install_snapshot(&meta, file).await.unwrap();
    assert_eq!(to.store.state(), from.store.state());
    assert_eq!(raw(&to.store), raw(&from.store));
    assert_eq!(hash_of(&to.store), to.store.state().1);
    assert_eq!(
        to.machine.applied_state().await.unwrap(),
        from.machine.applied_state().await.unwrap()
    );
    assert!(matches!(to.notices.try_recv(), Ok(Notice::Reset)));
    let current = to.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta, meta);

    // Both go on alike, and the installed ledger is there after a restart.
    for m in [&from, &to] {
        m.store
            .apply(vec![entry(6, vec![submit(301, 9_000)])])
            .unwrap();
        merged(&m.store);
    }
    assert_eq!(to.store.state(), from.store.state());
    to.store.close();
    let to = machine(there.path());
    assert_eq!(to.store.state(), from.store.state());
    assert!(to.store.check().unwrap());
    to.store.close();
    from.store.close();
}

#[tokio::test]
async fn a_snapshot_shows_one_moment_while_the_ledger_goes_on() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = machine(here.path());
    let fill: Vec<_> = (0..2_000).map(|number| submit(number, 300)).collect();
    from.store.apply(vec![entry(0, fill)]).unwrap();
    let writing = from.store.clone();
    let states = std::thread::spawn(move || {
        let mut states = BTreeMap::new();
        for index in 1..400 {
            let commands = vec![
                Command::Cancel {
                    job: job(index * 7 % 2_000),
                },
                submit(10_000 + index, 9_000),
                Command::Expire {
                    limit: 1,
                    keep_bytes: 0,
                },
            ];
            writing.apply(vec![entry(index, commands)]).unwrap();
            states.insert(index, writing.state().1);
        }
        states
    });
    let mut built = Vec::new();
    while !states.is_finished() {
        built.push(from.store.build().unwrap());
    }
    let states = states.join().unwrap();
    let between = built
        .iter()
        .filter(|snapshot| (1..399).contains(&snapshot.meta.last_log_id.unwrap().index));
    assert!(between.count() > 0, "nothing was built meanwhile");
    for snapshot in built {
        let meta = snapshot.meta.clone();
        let index = meta.last_log_id.unwrap().index;
        let to = machine(there.path());
        // Its runs may have been merged into others since.
        let path = received(snapshot, there.path());
        let file = SnapshotFile::open_received(Received::at(path), &meta).unwrap();
        to.store.install(&meta, &file).unwrap();
        let (applied, hash) = to.store.state();
        assert_eq!(applied, meta.last_log_id);
        assert_eq!(hash_of(&to.store), hash);
        if let Some(expected) = states.get(&index) {
            assert_eq!(hash, *expected);
        }
        to.store.close();
    }
    from.store.close();
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

#[derive(Clone, Debug)]
enum Step {
    Submit(usize),
    Cancel(u64),
    Expire(u32),
    Order(u32),
    Oldest(u32),
    Build,
    Merge,
    Open,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![Just(10_usize), Just(300), Just(9_000), Just(40_000)].prop_map(Step::Submit),
        6 => (0..40_u64).prop_map(Step::Cancel),
        3 => (1..6_u32).prop_map(Step::Expire),
        2 => (1..12_u32).prop_map(Step::Order),
        3 => (1..6_u32).prop_map(Step::Oldest),
        3 => Just(Step::Build),
        2 => Just(Step::Merge),
        1 => Just(Step::Open),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever lies in which layer, all of them together are what a ledger in memory is.
    #[test]
    fn layers_are_like_one(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut m = machine(dir.path());
        let (mut groups, mut index, mut number) = (Vec::new(), 0, 0);
        for step in steps {
            let command = match step {
                Step::Submit(size) => {
                    number += 1;
                    submit(number, size)
                }
                Step::Cancel(number) => Command::Cancel { job: job(number) },
                Step::Expire(limit) => Command::Expire { limit, keep_bytes: 0 },
                Step::Order(limit) => Command::OrderByAge { limit },
                Step::Oldest(limit) => Command::ExpireOldest {
                    limit, finished_ms: u64::MAX, keep_bytes: 0,
                },
                Step::Build => {
                    m.store.build().unwrap();
                    continue;
                }
                Step::Merge => {
                    merged(&m.store);
                    continue;
                }
                Step::Open => {
                    m.store.close();
                    m = machine(dir.path());
                    continue;
                }
            };
            m.store.apply(vec![entry(index, vec![command.clone()])]).unwrap();
            index += 1;
            groups.push(vec![command]);
        }
        let reference = reference(&groups);
        same(&m.store, &reference);
        prop_assert!(m.store.check().unwrap());
        m.store.build().unwrap();
        merged(&m.store);
        same(&m.store, &reference);
        m.store.close();
        m = machine(dir.path());
        same(&m.store, &reference);
        prop_assert!(m.store.check().unwrap());
        m.store.close();
    }
}

#[tokio::test]
async fn what_was_removed_gives_its_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let m = machine(dir.path());
    let bytes = || -> u64 {
        let files = fs::read_dir(dir.path().join("ledger")).unwrap();
        let runs = files.filter_map(|entry| {
            let path = entry.unwrap().path();
            (path.extension().is_some_and(|ext| ext == "run"))
                .then(|| fs::metadata(path).unwrap().len())
        });
        runs.sum()
    };
    let (mut index, mut sizes) = (0, Vec::new());
    for round in 0..12 {
        let mut commands = Vec::new();
        for number in round * 50..(round + 1) * 50 {
            commands.push(submit(number, 5_000));
            commands.push(Command::Cancel { job: job(number) });
        }
        // Two rounds are kept.
        if round >= 2 {
            commands.push(Command::Expire {
                limit: 50,
                keep_bytes: 0,
            });
        }
        m.store.apply(vec![entry(index, commands)]).unwrap();
        index += 1;
        m.store.build().unwrap();
        merged(&m.store);
        sizes.push(bytes());
    }
    let most = sizes[4..].iter().max().unwrap();
    assert!(*most <= 2 * sizes[1], "{sizes:?}");
    // And all of it when nothing is left.
    let commands = vec![Command::Expire {
        limit: 1_000,
        keep_bytes: 0,
    }];
    m.store.apply(vec![entry(index, commands)]).unwrap();
    m.store.build().unwrap();
    merged(&m.store);
    assert!(bytes() < sizes[0] / 4, "{} of {sizes:?}", bytes());
    m.store.close();
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_the_ledger_stays() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = machine(here.path());
    from.store
        .apply(vec![entry(0, vec![submit(1, 100_000)])])
        .unwrap();
    from.store.build().unwrap();
    from.store
        .apply(vec![entry(1, vec![submit(2, 1_000)])])
        .unwrap();
    let built = from.store.build().unwrap();
    let meta = built.meta.clone();
    let good = fs::read(received(built, here.path())).unwrap();

    let to = machine(there.path());
    to.store.apply(vec![entry(0, vec![submit(2, 10)])]).unwrap();
    let before = to.store.state();
    let mut longer = good.clone();
    longer.push(0);
    let mut wrongs = vec![
        good[..good.len() - 3].to_vec(),
        good[..good.len() / 2].to_vec(),
        longer,
        Vec::new(),
    ];
    for at in (0..good.len()).step_by(good.len() / 50 + 1) {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        wrongs.push(flipped);
    }
    // Each has a name of its own: what was received is removed when nobody has it any more.
    let mut names = 0;
    let mut put = |content: &[u8]| {
        names += 1;
        let path = there.path().join(names.to_string());
        fs::write(&path, content).unwrap();
        Received::at(path)
    };
    for wrong in &wrongs {
        let error = SnapshotFile::open_received(put(wrong), &meta).unwrap_err();
        assert!(error.to_string().contains("snapshot"), "{error}");
        // Had it been let through, it would have been refused here.
        let file = SnapshotFile::Received(put(wrong));
        let error = to.store.install(&meta, &file).unwrap_err();
        assert!(error.to_string().contains("snapshot"), "{error}");
        assert_eq!(to.store.state(), before);
    }
    let mut other = meta.clone();
    other.last_log_id = Some(id(7));
    SnapshotFile::open_received(put(&good), &other).unwrap_err();
    let right = put(&good);
    to.store.close();
    let to = machine(there.path());
    assert_eq!(to.store.state(), before);
    let file = SnapshotFile::open_received(right, &meta).unwrap();
    to.store.install(&meta, &file).unwrap();
    assert_eq!(to.store.state(), from.store.state());
    to.store.close();
    from.store.close();
}

#[tokio::test]
async fn what_a_crash_leaves_of_a_snapshot_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let m = machine(dir.path());
    m.store.apply(vec![entry(0, vec![submit(1, 10)])]).unwrap();
    m.store.build().unwrap();
    m.store.apply(vec![entry(1, vec![submit(2, 10)])]).unwrap();
    let state = m.store.state();
    m.store.close();

    let ledger = dir.path().join("ledger");
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&ledger)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let before = names();
    fs::write(snapshot_folder(dir.path()).join("3.receiving"), b"half").unwrap();
    fs::create_dir_all(ledger.join("77")).unwrap();
    fs::write(ledger.join("77/db"), b"half").unwrap();
    for left in ["77.creating", "78.run", "79.building", "manifest.tmp"] {
        fs::write(ledger.join(left), b"half").unwrap();
    }
    let mut m = machine(dir.path());
    assert_eq!(m.store.state(), state);
    assert_eq!(names(), before);
    let received = fs::read_dir(snapshot_folder(dir.path())).unwrap();
    assert_eq!(received.count(), 0);
    let current = m.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(id(1)));
    m.store.close();
}

/// A start finds a snapshot half built, whatever had been written of it: the manifest of before.
#[tokio::test]
async fn a_crash_while_a_snapshot_is_built_leaves_a_ledger_that_the_log_completes() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let m = machine(dir.path());
    for index in 0..20 {
        let entries = vec![entry(index, vec![submit(index, 500)])];
        m.store.apply(entries).unwrap();
        if index == 9 {
            m.store.build().unwrap();
        }
    }
    let frozen = m.store.freeze(Of::Snapshot).unwrap();
    for index in 20..30 {
        let entries = vec![entry(index, vec![submit(index, 500)])];
        m.store.apply(entries).unwrap();
    }
    let end = m.store.state();
    assert_eq!(
        frozen.overlay.len(),
        m.store
            .layers_of(|l| l.frozen.as_ref().unwrap().len())
            .unwrap()
    );
    copy_dir(dir.path(), copy.path());
    m.store.write_run(frozen).unwrap();
    assert_eq!(m.store.state(), end);
    assert!(m.store.check().unwrap());
    m.store.close();

    let log = LogRange {
        purged: Some(id(9)),
        last: Some(id(29)),
        voted: true,
    };
    let store = LedgerStore::open(copy.path(), Some(log)).unwrap();
    assert_eq!(store.state().0, Some(id(9)));
    for index in 10..30 {
        let entries = vec![entry(index, vec![submit(index, 500)])];
        store.apply(entries).unwrap();
    }
    assert_eq!(store.state(), end);
    assert!(store.check().unwrap());
    store.close();
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
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

/// A ledger of a hundred jobs, with a snapshot behind the sixtieth, after a crash; and what a log has that was purged behind
/// the fortieth.
fn with_snapshot(data_dir: &Path, of: Program) -> (LogRange, StateHash, StateHash) {
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
    if of == Program::Earlier {
        write_as_earlier(&m.store);
    }
    m.store.abandon();
    let log = LogRange {
        purged: Some(id(40)),
        last: Some(id(99)),
        voted: true,
    };
    (log, at_snapshot, end)
}

/// Who had the folder when it crashed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    This,
    /// One that kept the overlay in sled.
    Earlier,
}

/// Writes the overlay where earlier programs had it, as they did.
fn write_as_earlier(store: &LedgerStore) {
    let number = store.inner.manifest.lock().overlay;
    let disk = Disk::open(&manifest::overlay(&store.inner.data_dir, number), 1 << 20).unwrap();
    let mut batch = DiskBatch::default();
    store.layers_of(|layers| {
        for (key, value) in layers.overlay.iter() {
            batch.insert(key, value);
        }
    });
    batch.insert(b"zf", chunks::whole(b"zf", b"QUORUNLG\x02"));
    batch.insert(b"zm", chunks::whole(b"zm", &store.meta().encode()));
    disk.tree().apply_batch(batch).unwrap();
    disk.sync().unwrap();
}

fn overlay_db(data_dir: &Path) -> PathBuf {
    let manifest = Manifest::read(data_dir).unwrap().unwrap();
    manifest::overlay(data_dir, manifest.overlay).join("db")
}

fn newest_run(data_dir: &Path) -> PathBuf {
    let manifest = Manifest::read(data_dir).unwrap().unwrap();
    manifest::run(data_dir, *manifest.runs.last().unwrap())
}

fn apply_rest(store: &LedgerStore, from: u64) {
    for index in from..100 {
        let size = if index % 10 == 0 { 30_000 } else { 500 };
        let entries = vec![entry(index, vec![submit(index, size)])];
        store.apply(entries).unwrap();
    }
}

#[test]
fn what_was_only_in_memory_is_applied_again() {
    let dir = tempfile::tempdir().unwrap();
    let (log, at_snapshot, end) = with_snapshot(dir.path(), Program::This);
    for _ in 0..2 {
        let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
        assert_eq!(store.state(), (Some(id(60)), at_snapshot));
        store.check_not_ahead(log).unwrap();
        assert!(store.check().unwrap());
        apply_rest(&store, 61);
        assert_eq!(store.state().1, end);
        store.abandon();
    }
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    apply_rest(&store, 61);
    // A node that ends as it should leaves nothing to be applied.
    store.close();
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    assert_eq!(store.state(), (Some(id(99)), end));
    store.check_not_ahead(log).unwrap();
    assert!(store.check().unwrap());
    store.close();
}

#[test]
fn the_overlay_of_an_earlier_program_becomes_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _, end) = with_snapshot(dir.path(), Program::Earlier);
    // Twice: from its place, and from the run.
    for _ in 0..2 {
        let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
        assert_eq!(store.state(), (Some(id(99)), end));
        assert!(store.check().unwrap());
        assert!(!overlay_db(dir.path()).exists());
        store.abandon();
        let left = fs::read_dir(dir.path().join("ledger")).unwrap();
        assert!(
            left.map(|entry| entry.unwrap().path())
                .all(|path| path.is_file())
        );
    }
}

/// An earlier program has received a snapshot, and ended before its log had heard of it.
#[test]
fn an_empty_overlay_of_an_earlier_program_says_that_the_log_may_end_before() {
    let dir = tempfile::tempdir().unwrap();
    let (log, at_snapshot, _) = with_snapshot(dir.path(), Program::This);
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    write_as_earlier(&store);
    store.abandon();
    let short = LogRange {
        last: Some(id(50)),
        ..log
    };
    for _ in 0..2 {
        let store = LedgerStore::open(dir.path(), Some(short)).unwrap();
        assert_eq!(store.state(), (Some(id(60)), at_snapshot));
        store.check_not_ahead(short).unwrap();
        assert!(!overlay_db(dir.path()).exists());
        store.abandon();
    }
}

#[test]
fn a_damaged_overlay_of_an_earlier_program_is_made_anew_from_the_log() {
    type Damage = fn(&Path);
    let damages: [Damage; 3] = [
        |dir| fs::remove_dir_all(overlay_db(dir).parent().unwrap()).unwrap(),
        |dir| {
            let db = fs::OpenOptions::new().write(true).open(overlay_db(dir));
            db.unwrap().set_len(0).unwrap();
        },
        |dir| {
            // All of it is there, but one record is that of another time.
            let disk = Disk::open(overlay_db(dir).parent().unwrap(), 1 << 20).unwrap();
            let key = keys::job(job(70));
            let other = chunks::whole(&key, b"another");
            disk.tree().insert(&key, other).unwrap();
            disk.sync().unwrap();
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let (log, at_snapshot, end) = with_snapshot(dir.path(), Program::Earlier);
        damage(dir.path());
        let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
        assert_eq!(
            store.state(),
            (Some(id(60)), at_snapshot),
            "damage {number}"
        );
        store.check_not_ahead(log).unwrap();
        assert!(store.check().unwrap());
        apply_rest(&store, 61);
        assert_eq!(store.state().1, end, "damage {number}");
        store.close();
        let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
        assert_eq!(store.state(), (Some(id(99)), end));
        store.close();
    }
}

#[test]
fn runs_that_are_damaged_or_do_not_reach_are_refused() {
    type Damage = fn(&Path);
    let damages: [Damage; 5] = [
        |dir| fs::remove_dir_all(dir.join("ledger")).unwrap(),
        |dir| fs::remove_file(newest_run(dir)).unwrap(),
        |dir| {
            let run = fs::OpenOptions::new().write(true).open(newest_run(dir));
            run.unwrap().set_len(1_000).unwrap();
        },
        |dir| fs::write(newest_run(dir), b"").unwrap(),
        |dir| {
            let path = dir.join("ledger/manifest");
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        },
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        let (log, ..) = with_snapshot(dir.path(), Program::This);
        damage(dir.path());
        // A second try finds no more than the first.
        for _ in 0..2 {
            let error = LedgerStore::open(dir.path(), Some(log)).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("a node with a new id"), "{text}");
        }
    }
    // With a log that has everything, an empty folder starts from nothing.
    let dir = tempfile::tempdir().unwrap();
    let (log, ..) = with_snapshot(dir.path(), Program::This);
    let all = LogRange {
        purged: None,
        ..log
    };
    fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    let store = LedgerStore::open(dir.path(), Some(all)).unwrap();
    assert_eq!(store.state().0, None);
    store.close();
}

/// A folder from before the runs: the overlay is all that there is, and the log begins somewhere in it.
#[test]
fn an_overlay_of_an_earlier_program_that_the_log_does_not_reach_is_needed() {
    for damaged in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (log, _, end) = with_snapshot(dir.path(), Program::Earlier);
        if damaged {
            fs::write(overlay_db(dir.path()), b"").unwrap();
        }
        let purged = Some(id(70));
        let opened = LedgerStore::open(dir.path(), Some(LogRange { purged, ..log }));
        if damaged {
            let error = opened.unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
            continue;
        }
        let store = opened.unwrap();
        assert_eq!(store.state(), (Some(id(99)), end));
        let snapshot = store.current_snapshot().unwrap().unwrap();
        assert_eq!(snapshot.meta.last_log_id, Some(id(99)));
        store.make_durable(99).unwrap();
        store.make_durable(100).unwrap_err();
        store.close();
    }
}

#[test]
fn damage_to_any_place_of_a_run_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, ..) = with_snapshot(dir.path(), Program::This);
    let path = newest_run(dir.path());
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 60 + 1) {
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        // Where the node starts nevertheless, the look at all of it says so.
        if let Ok(store) = LedgerStore::open(dir.path(), Some(log)) {
            let error = store.check().unwrap_err();
            assert!(error.to_string().contains("sorted run"), "{at}: {error}");
            store.close();
        }
    }
    fs::write(&path, &good).unwrap();
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    assert!(store.check().unwrap());
    store.close();
}

#[test]
fn a_log_that_is_older_than_the_ledger_is_refused() {
    fn refused(store: &LedgerStore, last: Option<LogId>, voted: bool) -> bool {
        let purged = Some(id(40));
        let range = LogRange {
            purged,
            last,
            voted,
        };
        store.check_not_ahead(range).is_err()
    }
    let dir = tempfile::tempdir().unwrap();
    let (log, ..) = with_snapshot(dir.path(), Program::This);
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    assert!(!refused(&store, Some(id(60)), true));
    assert!(refused(&store, Some(id(59)), true));
    assert!(refused(&store, None, false));
    // Just behind the installing of a snapshot the log has not yet heard of it.
    let snapshot = store.current_snapshot().unwrap().unwrap();
    store.install(&snapshot.meta, &snapshot.snapshot).unwrap();
    store.abandon();
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    assert!(!refused(&store, Some(id(59)), true));
    assert!(refused(&store, None, false));
    store.build().unwrap();
    assert!(!refused(&store, Some(id(59)), true));
    // With a run of its own it must have them.
    apply_rest(&store, 61);
    store.build().unwrap();
    assert!(refused(&store, Some(id(59)), true));
    store.close();
}

#[test]
fn a_value_that_is_not_what_was_written_does_not_become_part_of_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let (log, ..) = with_snapshot(dir.path(), Program::This);
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    apply_rest(&store, 61);
    let (runs, hash) = store.to_check().unwrap();
    let take = || std::mem::take(&mut store.inner.current.write().layers.as_mut().unwrap().overlay);
    let mut overlay = take();
    let changed = |overlay: &Overlay, what: &str| {
        let hash = Changes::of(overlay, &runs, hash);
        assert!(hash.is_err(), "{what}");
        hash.unwrap_err().to_string()
    };
    let pairs: Vec<_> = overlay
        .iter()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    for (key, good) in &pairs {
        let mut flipped = good.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 4;
        overlay.insert(key, flipped);
        let error = changed(&overlay, "a flipped bit");
        assert!(error.contains("checksum"), "{error}");
        // Missing, or with the value of another time.
        if **key != *keys::COUNTERS && !chunks::is_removed(good) {
            overlay.forget(key);
            changed(&overlay, "a missing value");
            if !key.starts_with(b"zc") {
                overlay.insert(key, chunks::whole(key, b"another"));
                changed(&overlay, "another value");
            }
        }
        overlay.insert(key, good);
    }
    assert_eq!(Changes::of(&overlay, &runs, hash).unwrap(), store.state().1);
    let key = keys::job(job(80));
    overlay.insert(&key, chunks::whole(&key, b"another"));
    store.inner.current.write().layers.as_mut().unwrap().overlay = overlay;
    store.build().unwrap_err();
    store.close();
    // Nothing of it is there at the next start.
    let store = LedgerStore::open(dir.path(), Some(log)).unwrap();
    assert_eq!(store.state().0, Some(id(60)));
    store.close();
}

#[test]
fn what_is_too_much_waits_for_the_run_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let m = machine(dir.path());
    let large = |index: u64, count| {
        let commands = (0..count).map(|n| submit(index * 100 + n, 1 << 20));
        m.store.apply(vec![entry(index, commands.collect())])
    };
    large(0, 1).unwrap();
    let only_one = m.store.inner.snapshots.lock();
    let frozen = m.store.freeze(Of::Overlay).unwrap();
    let enough = (TOO_MUCH * FULL) >> 20;
    large(1, enough).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| large(2, 1));
        assert_eq!(m.store.state().0, Some(id(1)));
        assert!(!waiting.is_finished());
        m.store.write_run(frozen).unwrap();
        drop(only_one);
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(m.store.state().0, Some(id(2)));
    // One that has failed, and so is never done: nothing more is taken.
    drop(m.store.freeze(Of::Overlay).unwrap());
    large(3, enough).unwrap();
    large(4, 1).unwrap_err();
    m.store.close();
    let m = machine(dir.path());
    assert_eq!(m.store.state().0, Some(id(0)), "what had become a run");
    m.store.close();
}

/// A run is being made when the node ends: it is given up, and the log has what it would have had.
#[test]
fn a_ledger_is_closed_while_a_run_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let m = machine(dir.path());
    for index in 0..2 {
        let commands = (0..300).map(|n| submit(index * 1_000 + n, 5_000)).collect();
        m.store.apply(vec![entry(index, commands)]).unwrap();
        if index == 0 {
            m.store.flush(0).unwrap();
        }
    }
    let making = m.store.clone();
    let made = std::thread::spawn(move || making.flush(0));
    m.store.close();
    let made = made.join().unwrap();
    let left = machine(dir.path());
    let expected = u64::from(made.is_ok());
    // It may have been done before, or not begun.
    assert!(left.store.state().0 >= Some(id(expected)), "{made:?}");
    assert!(left.store.check().unwrap());
    left.store.close();
}

/// What is written while the overlay is large and becomes a run waits no longer than for that.
#[tokio::test]
async fn a_large_overlay_becomes_a_run_and_nothing_is_lost_of_what_is_written_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let m = machine(dir.path());
    let keeping = tokio::spawn(m.store.clone().keep_small());
    let mut groups = Vec::new();
    for index in 0..60 {
        let commands: Vec<_> = (0..20).map(|n| submit(index * 20 + n, 100_000)).collect();
        let (store, entries) = (m.store.clone(), vec![entry(index, commands.clone())]);
        let applied = tokio::task::spawn_blocking(move || store.apply(entries).map(drop));
        applied.await.unwrap().unwrap();
        groups.push(commands);
        let in_memory = m.store.layers_of(|layers| layers.overlay.bytes()).unwrap();
        assert!(in_memory < TOO_MUCH * FULL + (3 << 20), "{in_memory}");
    }
    same(&m.store, &reference(&groups));
    let covered = m
        .store
        .current_snapshot()
        .unwrap()
        .unwrap()
        .meta
        .last_log_id;
    assert!(covered.is_some(), "nothing has become a run");
    m.store.abandon();
    keeping.await.unwrap();
    let m = machine(dir.path());
    assert_eq!(m.store.state().0, covered);
    assert!(m.store.check().unwrap());
    m.store.close();
}

#[test]
fn a_newer_format_is_refused_and_nothing_is_touched() {
    type Change = fn(&Path);
    let changes: [Change; 4] = [
        // The rules that the ledger is under.
        |dir| {
            let disk = Disk::open(overlay_db(dir).parent().unwrap(), 1 << 20).unwrap();
            let later = Counters {
                rules: 7,
                ..Counters::default()
            };
            let later = chunks::whole(keys::COUNTERS, &later.encode());
            disk.tree().insert(keys::COUNTERS, later).unwrap();
            disk.sync().unwrap();
        },
        |dir| {
            let disk = Disk::open(overlay_db(dir).parent().unwrap(), 1 << 20).unwrap();
            let newer = chunks::whole(b"zf", b"QUORUNLG\x07");
            disk.tree().insert(b"zf", newer).unwrap();
            disk.sync().unwrap();
        },
        |dir| {
            let path = dir.join("ledger/manifest");
            let mut bytes = fs::read(&path).unwrap();
            bytes[8] = 7;
            fs::write(path, bytes).unwrap();
        },
        |dir| {
            let path = newest_run(dir);
            let mut bytes = fs::read(&path).unwrap();
            bytes[8] = 7;
            fs::write(path, bytes).unwrap();
        },
    ];
    for change in changes {
        let dir = tempfile::tempdir().unwrap();
        let (log, ..) = with_snapshot(dir.path(), Program::Earlier);
        change(dir.path());
        for _ in 0..2 {
            let error = LedgerStore::open(dir.path(), Some(log)).unwrap_err();
            assert!(matches!(error, Error::Newer { .. }), "{error}");
            assert!(error.to_string().contains("format 7"), "{error}");
        }
    }
}
