//! The log over a real sled, in a folder of its own.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::{EntryPayload, RaftLogReader};

use super::memory::TAIL;
use super::*;
use crate::types::EncodedBatch;

const HERE: ClusterId = ClusterId([5; 16]);

fn location(data_dir: &Path) -> Location {
    Location {
        data_dir: data_dir.to_owned(),
        cluster: HERE,
        node: 1,
    }
}

fn open(data_dir: &Path) -> LogStore {
    LogStore::open(&location(data_dir)).unwrap()
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

fn entry(term: u64, index: u64, size: usize) -> Entry {
    let byte = u8::try_from(index % 251).unwrap();
    Entry {
        log_id: id(term, index),
        payload: EntryPayload::Normal(EncodedBatch(vec![byte; size].into())),
    }
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    log.blocking_append(entries).await.unwrap();
}

async fn all(log: &mut LogStore) -> Vec<Entry> {
    log.try_get_log_entries(..).await.unwrap()
}

/// Returns when everything handed to the writer so far is on disk.
async fn barrier(log: &mut LogStore) {
    let vote = log.read_vote().await.unwrap();
    let vote = vote.unwrap_or_else(|| Vote::new(0, 1));
    log.save_vote(&vote).await.unwrap();
}

fn no_blobs(data_dir: &Path) {
    let blobs = data_dir.join("log").join("blobs");
    assert_eq!(
        fs::read_dir(blobs).unwrap().count(),
        0,
        "sled has made blob files"
    );
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let vote = Vote::new_committed(4, 2);
    let entries: Vec<_> = (0..500).map(|index| entry(4, index, 300)).collect();
    let mut log = open(dir.path());
    log.save_vote(&vote).await.unwrap();
    for part in entries.chunks(7) {
        append(&mut log, part.to_vec()).await;
    }
    log.save_committed(Some(id(4, 450))).await.unwrap();
    log.close();

    let mut log = open(dir.path());
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(id(4, 450)));
    assert_eq!(all(&mut log).await, entries);
    let some = log.try_get_log_entries(123..=130).await.unwrap();
    assert_eq!(some, entries[123..=130]);
    append(&mut log, vec![entry(5, 500, 1)]).await;
    assert_eq!(all(&mut log).await.len(), 501);
    assert_eq!(*log.durable().borrow(), 501);
    log.close();
    no_blobs(dir.path());
}

#[tokio::test]
async fn large_entries_are_split_and_come_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [10, 1 << 20, 0, 8_000, 8_200, 3 << 20, 20, 16 << 10, 100_000];
    let entries: Vec<_> = (0..)
        .zip(sizes)
        .map(|(index, size)| entry(1, index, size))
        .collect();
    let mut log = open(dir.path());
    append(&mut log, entries.clone()).await;
    log.close();

    let mut log = open(dir.path());
    assert_eq!(all(&mut log).await, entries);
    for (_, value) in log.shared.disk().unwrap().tree().iter().map(Result::unwrap) {
        assert!(value.len() <= 16 << 10, "a value of {} bytes", value.len());
    }
    log.close();
    no_blobs(dir.path());
}

#[tokio::test]
async fn a_limited_read_ends_early_but_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = (0..10).map(|index| entry(1, index, 600 << 10)).collect();
    let mut log = open(dir.path());
    append(&mut log, entries.clone()).await;
    for _ in 0..2 {
        let read = log.limited_get_log_entries(2, 10).await.unwrap();
        assert!((1..8).contains(&read.len()), "{}", read.len());
        assert_eq!(read, entries[2..2 + read.len()]);
        // Once more from disk.
        log.close();
        log = open(dir.path());
    }
    log.close();
}

#[tokio::test]
async fn reads_join_what_is_on_disk_and_what_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = (0..40).map(|index| entry(1, index, 5_000)).collect();
    let mut log = open(dir.path());
    append(&mut log, entries[..30].to_vec()).await;
    log.close();
    let mut log = open(dir.path());
    append(&mut log, entries[30..].to_vec()).await;
    assert_eq!(log.shared.inner.lock().tail_first(), 30);
    assert_eq!(all(&mut log).await, entries);
    assert_eq!(
        log.try_get_log_entries(28..33).await.unwrap(),
        entries[28..33]
    );
    assert_eq!(log.try_get_log_entries(5..6).await.unwrap(), entries[5..6]);
    log.close();
}

#[tokio::test]
async fn the_tail_in_memory_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    let entries: Vec<_> = (0..48).map(|index| entry(1, index, 1 << 20)).collect();
    for entry in &entries {
        append(&mut log, vec![entry.clone()]).await;
    }
    assert!(log.shared.inner.lock().tail_bytes <= TAIL);
    assert_eq!(all(&mut log).await, entries);
    log.close();
    no_blobs(dir.path());
}

#[tokio::test]
async fn truncation_cuts_records_and_holds_after_reopening() {
    // Where the cut falls: in a record, in a large entry, before everything, in what is not yet packed.
    for cut in [
        None,
        Some(0),
        Some(9),
        Some(17),
        Some(20),
        Some(21),
        Some(38),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        append(
            &mut log,
            (0..20).map(|index| entry(1, index, 700)).collect(),
        )
        .await;
        append(&mut log, vec![entry(1, 20, 30_000)]).await;
        append(
            &mut log,
            (21..40).map(|index| entry(1, index, 10)).collect(),
        )
        .await;

        log.truncate_after(cut.map(|cut| id(1, cut))).await.unwrap();
        let next = cut.map_or(0, |cut| cut + 1);
        assert_eq!(
            *log.durable().borrow(),
            next,
            "what was there is not what comes"
        );
        let more: Vec<_> = (next..next + 5)
            .map(|index| entry(2, index, 9_000))
            .collect();
        append(&mut log, more.clone()).await;
        let before = all(&mut log).await;
        assert_eq!(before.len() as u64, next + 5);
        assert_eq!(before[usize::try_from(next).unwrap()..], more);
        log.close();

        let mut log = open(dir.path());
        assert_eq!(all(&mut log).await, before, "cut at {cut:?}");
        assert_eq!(
            log.get_log_state().await.unwrap().last_log_id,
            Some(id(2, next + 4))
        );
        log.close();
    }
}

#[tokio::test]
async fn operations_that_wait_together_are_written_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    // Nothing here is waited for, so that much of it is drained at once.
    for round in 0..50_u64 {
        let first = round * 10;
        let noop = openraft::storage::IOFlushed::noop;
        let entries: Vec<_> = (first..first + 20)
            .map(|i| entry(round + 1, i, 500))
            .collect();
        log.append(entries, noop()).await.unwrap();
        log.truncate_after(Some(id(round + 1, first + 9)))
            .await
            .unwrap();
        if round % 7 == 3 {
            log.purge(id(round, first - 5)).await.unwrap();
        }
    }
    barrier(&mut log).await;
    let before = all(&mut log).await;
    let state = log.get_log_state().await.unwrap();
    log.close();

    let mut log = open(dir.path());
    assert_eq!(all(&mut log).await, before);
    assert_eq!(log.get_log_state().await.unwrap(), state);
    assert_eq!(state.last_log_id, Some(id(50, 499)));
    assert_eq!(state.last_purged_log_id, Some(id(45, 445)));
    log.close();
}

#[tokio::test]
async fn purged_entries_go_and_their_place_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(
        &mut log,
        (0..3_000).map(|index| entry(1, index, 5_000)).collect(),
    )
    .await;
    log.purge(id(1, 2_500)).await.unwrap();
    assert_eq!(all(&mut log).await.len(), 499);
    barrier(&mut log).await;
    log.close();

    let mut log = open(dir.path());
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(id(1, 2_500)));
    assert_eq!(all(&mut log).await[0].log_id, id(1, 2_501));
    // Beyond the end, as after a snapshot from the leader.
    log.purge(id(3, 9_000)).await.unwrap();
    append(&mut log, vec![entry(3, 9_001, 10)]).await;
    log.close();

    let mut log = open(dir.path());
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(id(3, 9_000)));
    assert_eq!(all(&mut log).await, [entry(3, 9_001, 10)]);
    log.close();
}

#[tokio::test]
async fn what_is_too_much_of_the_log_is_the_oldest_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    for index in 0..10 {
        append(&mut log, vec![entry(1, index, 100 << 10)]).await;
    }
    barrier(&mut log).await;
    // Each takes 13 parts of 8 KiB.
    let part = 13 * (8 << 10);
    assert_eq!(log.surplus(9, 10 * part), None);
    assert_eq!(log.surplus(9, 10 * part - 1), Some(0));
    assert_eq!(log.surplus(9, 3 * part), Some(6));
    assert_eq!(log.surplus(5, 3 * part), Some(2), "up to the sixth");
    assert_eq!(log.surplus(9, 0), Some(9));
    log.purge(id(1, 6)).await.unwrap();
    assert_eq!(log.surplus(9, 3 * part), None, "it has gone");
    assert_eq!(log.surplus(9, 2 * part), Some(7));
    log.close();
}

#[tokio::test]
async fn removing_goes_on_after_a_restart_until_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(
        &mut log,
        (0..4_000).map(|index| entry(1, index, 5_000)).collect(),
    )
    .await;
    log.purge(id(1, 3_999)).await.unwrap();
    // Closing comes right behind the purge, so that most keys are still there.
    log.close();
    let log = open(dir.path());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let disk = log.shared.disk().unwrap();
    while disk.tree().scan_prefix([record::TABLE]).next().is_some() {
        assert!(std::time::Instant::now() < deadline, "keys are left");
        tokio::task::yield_now().await;
    }
    drop(disk);
    log.close();
}

#[tokio::test]
async fn a_hole_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(&mut log, vec![entry(1, 0, 1)]).await;
    let hole = log
        .append(vec![entry(1, 2, 1)], openraft::storage::IOFlushed::noop())
        .await;
    assert!(hole.unwrap_err().to_string().contains("entry 2"));
    log.close();
}

#[tokio::test]
async fn another_node_or_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).close();
    for other in [
        Location {
            node: 2,
            ..location(dir.path())
        },
        Location {
            cluster: ClusterId([6; 16]),
            ..location(dir.path())
        },
    ] {
        let error = LogStore::open(&other).unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("belongs to node 1 of cluster 0505"),
            "{error}"
        );
    }
    open(dir.path()).close();
}

/// A log of 200 entries, closed.
async fn written(data_dir: &Path) {
    let mut log = open(data_dir);
    log.save_vote(&Vote::new(3, 1)).await.unwrap();
    for first in (0..200).step_by(10) {
        append(
            &mut log,
            (first..first + 10).map(|i| entry(3, i, 900)).collect(),
        )
        .await;
    }
    log.close();
}

fn refused(data_dir: &Path, what: &str) {
    match LogStore::open(&location(data_dir)) {
        Err(Error::Damaged { .. }) => {}
        Err(other) => panic!("{what}: another error: {other}"),
        Ok(log) => {
            log.close();
            panic!("{what}: the log was opened");
        }
    }
}

#[tokio::test]
async fn a_log_that_is_older_than_its_watermark_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (then, now) = (dir.path().join("then"), dir.path().join("now"));
    written(&now).await;
    copy_folder(&now, &then);
    let mut log = open(&now);
    append(&mut log, vec![entry(3, 200, 10)]).await;
    log.close();

    // The backup of the log alone, under today's watermark.
    fs::remove_dir_all(now.join("log")).unwrap();
    copy_folder(&then.join("log"), &now.join("log"));
    let error = LogStore::open(&location(&now)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(now.join("log").to_str().unwrap()), "{text}");
    assert!(
        text.contains("entry 199") && text.contains("entry 200"),
        "{text}"
    );
    assert!(text.contains("a node with a new id"), "{text}");
    refused(&now, "a stale log");

    fs::remove_dir_all(now.join("log")).unwrap();
    refused(&now, "no log");
    refused(&now, "the empty log that the refused start has left");

    fs::remove_file(then.join("log.watermark")).unwrap();
    refused(&then, "no watermark");
}

#[tokio::test]
async fn a_forgotten_vote_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (then, now) = (dir.path().join("then"), dir.path().join("now"));
    written(&now).await;
    copy_folder(&now, &then);
    let mut log = open(&now);
    log.save_vote(&Vote::new(4, 2)).await.unwrap();
    log.close();
    fs::remove_dir_all(now.join("log")).unwrap();
    copy_folder(&then.join("log"), &now.join("log"));
    refused(&now, "a forgotten vote");
}

#[tokio::test]
async fn a_truncated_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    written(&whole).await;
    let length = fs::metadata(whole.join("log/db")).unwrap().len();
    for part in [0, 1, 10, 25, 50] {
        let damaged = dir.path().join(format!("cut-{part}"));
        copy_folder(&whole, &damaged);
        let file = fs::OpenOptions::new()
            .write(true)
            .open(damaged.join("log/db"))
            .unwrap();
        file.set_len(length * part / 100).unwrap();
        refused(&damaged, &format!("cut to {part} of 100"));
    }
}

#[tokio::test]
async fn damage_is_refused_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    written(&whole).await;
    let intact = {
        let mut log = open(&whole);
        let entries = all(&mut log).await;
        log.close();
        entries
    };
    let length = fs::metadata(whole.join("log/db")).unwrap().len();
    let mut refusals = 0;
    for trial in 0..24 {
        let damaged = dir.path().join(format!("flip-{trial}"));
        copy_folder(&whole, &damaged);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(damaged.join("log/db"))
            .unwrap();
        let position = length * (2 * trial + 1) / 48;
        let mut byte = [0];
        file.seek(SeekFrom::Start(position)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(position)).unwrap();
        file.write_all(&[byte[0] ^ 0x40]).unwrap();
        drop(file);
        match LogStore::open(&location(&damaged)) {
            Ok(mut log) => {
                assert_eq!(all(&mut log).await, intact, "flipped at {position}");
                log.close();
            }
            Err(Error::Damaged { .. }) => refusals += 1,
            Err(other) => panic!("flipped at {position}: another error: {other}"),
        }
    }
    // Most of the file is unused; what is used must have been hit at least once.
    assert!(refusals > 0, "no flip has hit anything");
}

#[tokio::test]
async fn a_closed_log_fails_instead_of_hanging() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(&mut log, vec![entry(1, 0, 10)]).await;
    log.close();
    log.save_vote(&Vote::new(1, 1)).await.unwrap_err();
    log.blocking_append(vec![entry(1, 1, 10)])
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_log_that_cannot_be_written_says_so_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(&mut log, vec![entry(1, 0, 10)]).await;
    let disk = log.shared.disk.write().take();
    log.blocking_append(vec![entry(1, 1, 10)])
        .await
        .unwrap_err();
    assert!(log.failure().borrow().is_some());
    assert_eq!(*log.durable().borrow(), 1);
    // The cause is gone, but what is on disk is no longer what this node thinks.
    *log.shared.disk.write() = disk;
    log.save_vote(&Vote::new(9, 1)).await.unwrap_err();
    log.blocking_append(vec![entry(1, 2, 10)])
        .await
        .unwrap_err();
    log.close();
    let mut log = open(dir.path());
    assert_eq!(all(&mut log).await, [entry(1, 0, 10)]);
    assert_eq!(log.read_vote().await.unwrap(), None);
    log.close();
}

#[tokio::test]
async fn a_log_that_is_ahead_of_its_watermark_is_taken_as_it_is() {
    // The node died between the two, before anything was acknowledged.
    let dir = tempfile::tempdir().unwrap();
    let now = dir.path().join("now");
    written(&now).await;
    let mark = fs::read(now.join("log.watermark")).unwrap();
    let mut log = open(&now);
    log.truncate_after(Some(id(3, 150))).await.unwrap();
    log.purge(id(3, 20)).await.unwrap();
    append(&mut log, vec![entry(4, 151, 10)]).await;
    let before = all(&mut log).await;
    log.close();
    fs::write(now.join("log.watermark"), mark).unwrap();
    for _ in 0..2 {
        let mut log = open(&now);
        assert_eq!(all(&mut log).await, before);
        append(&mut log, Vec::new()).await;
        log.close();
    }
}

#[tokio::test]
async fn a_log_in_use_is_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(&mut log, vec![entry(1, 0, 10)]).await;
    let error = LogStore::open(&location(dir.path())).unwrap_err();
    assert!(matches!(error, Error::Storage(_)), "{error}");
    assert!(error.to_string().contains("another process"), "{error}");
    log.close();
}

/// A change is written with the state that tells of it last; a crash can leave the first of its records.
#[tokio::test]
async fn what_a_crash_has_left_of_a_change_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = (0..20).map(|index| entry(1, index, 100)).collect();
    let mut log = open(dir.path());
    append(&mut log, entries[..10].to_vec()).await;
    let disk = log.shared.disk().unwrap();
    // Records with several parts, the last of which is missing, and one of another length than what comes there later.
    let unfinished: Vec<_> = (10..14)
        .map(|index| Encoded::new(&entry(1, index, 20_000)))
        .collect();
    let mut values = Vec::new();
    record::pack(&unfinished, &mut 77, |key, value| values.push((key, value)));
    values.pop();
    for (key, value) in values {
        disk.tree().insert(&key, value).unwrap();
    }
    drop(disk);
    log.close();

    let mut log = open(dir.path());
    assert_eq!(all(&mut log).await, entries[..10]);
    append(&mut log, entries[10..].to_vec()).await;
    log.close();
    let mut log = open(dir.path());
    assert_eq!(all(&mut log).await, entries);
    log.close();
}
