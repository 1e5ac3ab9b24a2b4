//! A sorted run: pairs in the order of their keys, in a file that never changes once it has its name.
//!
//! | part | holds |
//! | --- | --- |
//! | magic, version | |
//! | blocks | frames; each body is a row of pairs, compressed with LZ4 |
//! | index | frames: the [`Summary`], then the first key and the place of each block, then the filter |
//! | trailer | where the index begins, magic, CRC-32 of both |
//!
//! Frames, keys and values are written as [`frames`](super::frames) says; values are those of the
//! layers ([`chunks`](super::chunks)), removals among them. The index and the filter, some 15 bytes for a pair of the usual size,
//! are kept in memory; blocks are read when they are needed.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sled::IVec;
use xxhash_rust::xxh3::xxh3_64;

use super::frames::{self, FRAME, FrameReader, FrameWriter, put, take};
use crate::error::NewerFormat;
use crate::files;

const MAGIC: &[u8; 8] = b"QUORUNRN";
const VERSION: u8 = 1;
const END: &[u8; 8] = b"QUORUNRE";
/// Length of the trailer: the place of the index, the magic, the checksum.
const TRAILER: u64 = 8 + 8 + 4;
/// A block is full when its pairs take so much, bytes.
const BLOCK: usize = 16 * 1024;
/// No block is larger, compressed or not: it is full before its last pair, and no key or value comes near this.
const MAX_BLOCK: u64 = 1 << 20;
/// No figure of a run comes near this; so their sums are figures, too.
const MAX_FIGURE: u64 = 1 << 56;
/// After so many bytes what was written is synced. All of it at once would keep the disk, and with it the log, busy for
/// long.
const SYNC_AFTER: u64 = 2 << 20;
/// Bits of the filter for each key. With [`PROBES`] one of 120 keys that are not there is looked for in vain.
const BITS: u64 = 10;
const PROBES: u64 = 7;

/// A key and its value, as they lie in a layer.
pub(super) type RawPair = (IVec, IVec);
/// Blocks that were read lately, by the number of their run and their own.
pub(super) type BlockCache = quick_cache::sync::Cache<(u64, usize), Arc<Block>>;

/// So many blocks are kept in memory.
const CACHED: usize = 256;

pub(super) fn block_cache() -> Arc<BlockCache> {
    Arc::new(BlockCache::new(CACHED))
}

fn invalid(path: &Path, what: &str) -> io::Error {
    let message = format!("the sorted run {}: {what}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The first body of the index.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Summary {
    pairs: u64,
    /// What the pairs take, not compressed, bytes.
    size: u64,
    /// What the removals among them hide in older runs, about, bytes.
    hidden: u64,
    blocks: u64,
    /// Bytes of the filter.
    filter: u64,
}

/// Says of a key that it is not there, or that it may be (Bloom, 1970).
#[derive(Debug)]
struct Filter(Vec<u8>);

impl Filter {
    fn for_keys(keys: u64) -> Self {
        let bytes = (keys.max(1) * BITS).div_ceil(8);
        Self(vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)])
    }

    /// Two hashes make all the places of a key (Kirsch and Mitzenmacher, 2006).
    fn places(&self, key: &[u8]) -> impl Iterator<Item = (usize, u8)> + use<> {
        let hash = xxh3_64(key);
        let (first, second) = (hash & 0xffff_ffff, (hash >> 32) | 1);
        let bits = self.0.len() as u64 * 8;
        (0..PROBES).map(move |probe| {
            let bit = first.wrapping_add(probe.wrapping_mul(second)) % bits;
            (usize::try_from(bit / 8).unwrap_or(0), 1 << (bit % 8))
        })
    }

    fn add(&mut self, key: &[u8]) {
        for (byte, bit) in self.places(key) {
            self.0[byte] |= bit;
        }
    }

    fn may_have(&self, key: &[u8]) -> bool {
        !self.0.is_empty() && self.places(key).all(|(byte, bit)| self.0[byte] & bit != 0)
    }
}

/// The file of a run that has not got its name yet; it is removed unless it gets it.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.0.display(), "a half-written run stays until the next start");
            }
            _ => {} // it has got its name, or is gone
        }
    }
}

/// Writes a run under another name, and gives it its own once it is on disk.
pub(super) struct RunWriter {
    path: PathBuf,
    unfinished: Unfinished,
    frames: FrameWriter<BufWriter<File>>,
    /// Where the next frame begins.
    at: u64,
    synced: u64,
    block: Vec<u8>,
    first: Vec<u8>,
    index: Vec<(Box<[u8]>, u64)>,
    filter: Filter,
    pairs: u64,
    size: u64,
}

impl RunWriter {
    /// Begins a run for about so many pairs.
    pub(super) fn create(path: &Path, pairs: u64) -> io::Result<Self> {
        let unfinished = Unfinished(path.with_extension("building"));
        let mut file = BufWriter::new(File::create(&unfinished.0)?);
        file.write_all(MAGIC)?;
        file.write_all(&[VERSION])?;
        Ok(Self {
            path: path.to_owned(),
            unfinished,
            frames: FrameWriter(file),
            at: MAGIC.len() as u64 + 1,
            synced: 0,
            block: Vec::with_capacity(BLOCK + BLOCK / 2),
            first: Vec::new(),
            index: Vec::new(),
            filter: Filter::for_keys(pairs),
            pairs: 0,
            size: 0,
        })
    }

    /// Adds the next pair; keys come in their order.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if self.block.is_empty() {
            self.first = key.to_vec();
        }
        put(&mut self.block, key);
        put(&mut self.block, value);
        self.filter.add(key);
        self.pairs += 1;
        self.size += (key.len() + value.len()) as u64;
        if self.block.len() >= BLOCK {
            self.end_block()?;
        }
        Ok(())
    }

    fn frame(&mut self, body: &[u8]) -> io::Result<()> {
        self.frames.write(body)?;
        self.at += frames::length(body);
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        let body = lz4_flex::block::compress_prepend_size(&self.block);
        self.block.clear();
        let first = std::mem::take(&mut self.first).into_boxed_slice();
        self.index.push((first, self.at));
        self.frame(&body)?;
        if self.at - self.synced >= SYNC_AFTER {
            self.synced = self.at;
            self.frames.0.flush()?;
            self.frames.0.get_ref().sync_data()?;
        }
        Ok(())
    }

    /// What its pairs take so far, not compressed, bytes.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Returns when the run is on disk under its name; its removals hide so many bytes. `None`: it has no pairs, and no
    /// file.
    pub(super) fn finish(mut self, number: u64, hidden: u64) -> io::Result<Option<Run>> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        if self.index.is_empty() {
            return Ok(None);
        }
        let index_at = self.at;
        let summary = Summary {
            pairs: self.pairs,
            size: self.size,
            hidden,
            blocks: self.index.len() as u64,
            filter: self.filter.0.len() as u64,
        };
        self.frame(&quorun_ledger::codec::encode(&summary))?;
        let mut body = Vec::new();
        let index = std::mem::take(&mut self.index);
        for (first, at) in &index {
            put(&mut body, first);
            body.extend_from_slice(&at.to_be_bytes());
            if body.len() >= FRAME {
                self.frame(&std::mem::take(&mut body))?;
            }
        }
        if !body.is_empty() {
            self.frame(&body)?;
        }
        let filter = std::mem::take(&mut self.filter.0);
        for piece in filter.chunks(FRAME) {
            self.frame(piece)?;
        }
        let mut trailer = index_at.to_be_bytes().to_vec();
        trailer.extend_from_slice(END);
        let crc = crc32fast::hash(&trailer);
        trailer.extend_from_slice(&crc.to_be_bytes());
        self.frames.0.write_all(&trailer)?;
        let file = self.frames.0.into_inner();
        let file = file.map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&self.unfinished.0, &self.path)?;
        files::sync_parent(&self.path)?;
        Ok(Some(Run {
            number,
            file: File::open(&self.path)?,
            bytes: self.at + TRAILER,
            path: self.path,
            index,
            index_at,
            filter: Filter(filter),
            summary,
        }))
    }
}

/// Where the index begins.
fn trailer_says(trailer: &[u8; TRAILER as usize]) -> Option<u64> {
    let (said, crc) = trailer.split_last_chunk::<4>()?;
    let (index_at, end) = said.split_first_chunk::<8>()?;
    let whole = end == END && crc32fast::hash(said).to_be_bytes() == *crc;
    whole.then(|| u64::from_be_bytes(*index_at))
}

/// Reads the file of a run, which may have been removed from its folder meanwhile.
#[derive(Debug)]
pub(super) struct RunReader {
    run: Arc<Run>,
    at: u64,
}

impl Read for RunReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.run.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// An open run.
#[derive(Debug)]
pub(crate) struct Run {
    /// Its number among the runs of this process.
    pub(super) number: u64,
    path: PathBuf,
    file: File,
    /// Length of the file.
    pub(super) bytes: u64,
    /// The first key of each block, and where its frame begins.
    index: Vec<(Box<[u8]>, u64)>,
    index_at: u64,
    filter: Filter,
    summary: Summary,
}

/// The pairs of a block.
#[derive(Debug)]
pub(super) struct Block {
    data: Vec<u8>,
    /// Where each pair's key begins, where it ends, and where its value ends.
    pairs: Vec<(u32, u32, u32)>,
}

impl Block {
    fn parse(data: Vec<u8>) -> io::Result<Self> {
        let mut pairs = Vec::new();
        let mut rest = data.as_slice();
        let at = |rest: &[u8]| u32::try_from(data.len() - rest.len()).unwrap_or(u32::MAX);
        while !rest.is_empty() {
            let begin = at(rest) + 4;
            take(&mut rest)?;
            let key_end = at(rest);
            take(&mut rest)?;
            pairs.push((begin, key_end, at(rest)));
        }
        Ok(Self { data, pairs })
    }

    fn key(&self, at: usize) -> &[u8] {
        let (begin, end, _) = self.pairs[at];
        &self.data[begin as usize..end as usize]
    }

    fn value(&self, at: usize) -> &[u8] {
        let (_, begin, end) = self.pairs[at];
        // Behind the key there is the length of the value.
        &self.data[begin as usize + 4..end as usize]
    }

    fn pair(&self, at: usize) -> RawPair {
        (self.key(at).into(), self.value(at).into())
    }

    /// The place of the first pair whose key is `key` or behind it.
    fn at_or_behind(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.pairs.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

impl Run {
    /// Opens a run, and reads its index.
    pub(super) fn open(path: &Path, number: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut reader = BufReader::new(&file);
        let mut head = [0; MAGIC.len() + 1];
        let short = |error| match frames::cut_short(error) {
            error if error.kind() == io::ErrorKind::InvalidData => {
                invalid(path, &error.to_string())
            }
            error => error,
        };
        reader.read_exact(&mut head).map_err(short)?;
        match head.strip_prefix(MAGIC) {
            Some([VERSION]) => {}
            Some([newer]) => return Err(NewerFormat::error(*newer, VERSION)),
            _ => return Err(invalid(path, "it is not one")),
        }
        let mut trailer = [0; TRAILER as usize];
        let begin = bytes
            .checked_sub(TRAILER)
            .ok_or_else(|| invalid(path, "it is cut short"))?;
        file.read_exact_at(&mut trailer, begin).map_err(short)?;
        let index_at = trailer_says(&trailer).ok_or_else(|| invalid(path, "its end is not one"))?;
        reader.seek(SeekFrom::Start(index_at))?;
        let mut frames = FrameReader(reader.take(begin.saturating_sub(index_at)));
        let mut next = || {
            frames.read().map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => invalid(path, &format!("its index: {error}")),
                _ => error,
            })
        };
        let summary: Summary = quorun_ledger::codec::decode(&next()?)
            .map_err(|error| invalid(path, &error.to_string()))?;
        let mut index = Vec::new();
        while (index.len() as u64) < summary.blocks {
            let body = next()?;
            let mut rest = body.as_slice();
            while !rest.is_empty() {
                let first = take(&mut rest)?;
                let (at, behind) = rest
                    .split_first_chunk::<8>()
                    .ok_or_else(|| invalid(path, "its index is malformed"))?;
                index.push((first.into(), u64::from_be_bytes(*at)));
                rest = behind;
            }
        }
        let mut filter = Vec::new();
        while (filter.len() as u64) < summary.filter {
            filter.extend_from_slice(&next()?);
        }
        // Each has its checksum; this is for what was never right.
        let ends = index.iter().skip(1).map(|(_, at)| *at);
        let ends = ends.chain(std::iter::once(index_at));
        let whole = index
            .first()
            .is_some_and(|(_, at)| *at == head.len() as u64)
            && (index.iter().zip(ends)).all(|((_, at), end)| {
                end.checked_sub(*at)
                    .is_some_and(|length| (9..=MAX_BLOCK).contains(&length))
            })
            && index.is_sorted_by(|a, b| a.0 < b.0)
            && index.len() as u64 == summary.blocks
            && filter.len() as u64 == summary.filter
            && !filter.is_empty()
            && [summary.pairs, summary.size, summary.hidden]
                .iter()
                .all(|figure| *figure < MAX_FIGURE);
        if !whole {
            return Err(invalid(path, "its index is not one"));
        }
        Ok(Self {
            number,
            path: path.to_owned(),
            file,
            bytes,
            index,
            index_at,
            filter: Filter(filter),
            summary,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many pairs it has.
    pub(super) const fn pairs(&self) -> u64 {
        self.summary.pairs
    }

    /// What its pairs take, not compressed, bytes.
    pub(super) const fn size(&self) -> u64 {
        self.summary.size
    }

    /// What its removals hide in older runs, about, bytes.
    pub(super) const fn hidden(&self) -> u64 {
        self.summary.hidden
    }

    /// Reads the file as it is, from its beginning to its end.
    pub(super) fn reader(self: &Arc<Self>) -> RunReader {
        RunReader {
            run: self.clone(),
            at: 0,
        }
    }

    /// Reads through a file of a run that is so long: whether all of it is what was written.
    pub(super) fn read_through<R: Read>(mut reader: R, length: u64) -> io::Result<()> {
        let mut head = [0; MAGIC.len() + 1];
        reader.read_exact(&mut head).map_err(frames::cut_short)?;
        if head.strip_prefix(MAGIC) != Some(&[VERSION]) {
            return Err(frames::invalid("a run of another form"));
        }
        let mut at = head.len() as u64;
        while at < length.saturating_sub(TRAILER) {
            at += frames::length(&FrameReader(&mut reader).read()?);
        }
        let mut trailer = [0; TRAILER as usize];
        reader.read_exact(&mut trailer).map_err(frames::cut_short)?;
        trailer_says(&trailer).ok_or_else(|| frames::invalid("a run whose end is not one"))?;
        Ok(())
    }

    /// Whether a key may be in it, as a pair or a removal.
    pub(super) fn may_have(&self, key: &[u8]) -> bool {
        self.filter.may_have(key)
    }

    fn read_block(&self, number: usize) -> io::Result<Block> {
        let begin = self.index[number].1;
        let end = self
            .index
            .get(number + 1)
            .map_or(self.index_at, |next| next.1);
        let length = usize::try_from(end.saturating_sub(begin)).unwrap_or(0);
        let mut frame = vec![0; length];
        self.file.read_exact_at(&mut frame, begin)?;
        let wrong = |error: &dyn std::fmt::Display| {
            invalid(&self.path, &format!("block {number}: {error}"))
        };
        let body = FrameReader(frame.as_slice())
            .read()
            .map_err(|error| wrong(&error))?;
        let (size, packed) =
            lz4_flex::block::uncompressed_size(&body).map_err(|error| wrong(&error))?;
        if size as u64 > MAX_BLOCK {
            return Err(wrong(&"it is too large"));
        }
        let data = lz4_flex::block::decompress(packed, size).map_err(|error| wrong(&error))?;
        let block = Block::parse(data).map_err(|error| wrong(&error))?;
        if block.pairs.is_empty() {
            return Err(wrong(&"it is empty"));
        }
        Ok(block)
    }

    fn block(&self, cache: &BlockCache, number: usize) -> io::Result<Arc<Block>> {
        cache.get_or_insert_with(&(self.number, number), || {
            self.read_block(number).map(Arc::new)
        })
    }

    /// The block in which a key would be; `None` when the key is before all.
    fn block_of(&self, key: &[u8]) -> Option<usize> {
        self.index
            .partition_point(|(first, _)| **first <= *key)
            .checked_sub(1)
    }

    /// The value under a key.
    pub(super) fn get(&self, cache: &BlockCache, key: &[u8]) -> io::Result<Option<IVec>> {
        if !self.may_have(key) {
            return Ok(None);
        }
        let Some(number) = self.block_of(key) else {
            return Ok(None);
        };
        let block = self.block(cache, number)?;
        let at = block.at_or_behind(key);
        let found = at < block.pairs.len() && block.key(at) == key;
        Ok(found.then(|| block.value(at).into()))
    }

    /// The first pair whose key is `from` or behind it.
    fn first(&self, cache: &BlockCache, from: &[u8]) -> io::Result<Option<(Arc<Block>, Place)>> {
        let mut number = self.block_of(from).unwrap_or(0);
        while number < self.index.len() {
            let block = self.block(cache, number)?;
            let at = block.at_or_behind(from);
            if at < block.pairs.len() {
                return Ok(Some((block, Place { number, at })));
            }
            number += 1;
        }
        Ok(None)
    }

    /// The last pair whose key is before `to`.
    fn last(&self, cache: &BlockCache, to: &[u8]) -> io::Result<Option<(Arc<Block>, Place)>> {
        let before = self.index.partition_point(|(first, _)| **first < *to);
        let Some(number) = before.checked_sub(1) else {
            return Ok(None);
        };
        let block = self.block(cache, number)?;
        // The block's first key is before it.
        let at = block.at_or_behind(to).saturating_sub(1);
        Ok(Some((block, Place { number, at })))
    }
}

/// Where a pair lies in a run.
#[derive(Clone, Copy, Debug)]
struct Place {
    number: usize,
    at: usize,
}

/// The pairs of a run whose keys are in `[from, to)`, in either direction; `to` absent: up to the end.
pub(super) struct RunIter {
    run: Arc<Run>,
    /// Absent where all of a run is read, of which nothing needs to be kept.
    cache: Option<Arc<BlockCache>>,
    to: Option<Vec<u8>>,
    from: Vec<u8>,
    /// The pair that comes next; absent behind the last one.
    next: Option<(Arc<Block>, Place)>,
}

impl RunIter {
    /// All pairs, in their order.
    pub(super) fn all(run: &Arc<Run>) -> io::Result<Self> {
        let next = if run.index.is_empty() {
            None
        } else {
            let block = Arc::new(run.read_block(0)?);
            Some((block, Place { number: 0, at: 0 }))
        };
        Ok(Self {
            run: run.clone(),
            cache: None,
            from: Vec::new(),
            to: None,
            next,
        })
    }

    /// From the first one on.
    pub(super) fn forward(
        run: &Arc<Run>,
        cache: &Arc<BlockCache>,
        from: &[u8],
        to: &[u8],
    ) -> io::Result<Self> {
        Ok(Self {
            next: run.first(cache, from)?,
            run: run.clone(),
            cache: Some(cache.clone()),
            from: from.to_vec(),
            to: Some(to.to_vec()),
        })
    }

    /// From the last one on.
    pub(super) fn backward(
        run: &Arc<Run>,
        cache: &Arc<BlockCache>,
        from: &[u8],
        to: &[u8],
    ) -> io::Result<Self> {
        Ok(Self {
            next: run.last(cache, to)?,
            run: run.clone(),
            cache: Some(cache.clone()),
            from: from.to_vec(),
            to: Some(to.to_vec()),
        })
    }

    fn block(&self, number: usize) -> io::Result<Arc<Block>> {
        match &self.cache {
            Some(cache) => self.run.block(cache, number),
            None => self.run.read_block(number).map(Arc::new),
        }
    }

    /// The pair that comes next, and goes on in the order of the keys.
    pub(super) fn next(&mut self) -> io::Result<Option<RawPair>> {
        let Some((block, place)) = self.next.take() else {
            return Ok(None);
        };
        let pair = block.pair(place.at);
        if self.to.as_ref().is_some_and(|to| *pair.0 >= **to) {
            return Ok(None);
        }
        self.next = if place.at + 1 < block.pairs.len() {
            let at = place.at + 1;
            Some((block, Place { at, ..place }))
        } else if place.number + 1 < self.run.index.len() {
            let number = place.number + 1;
            Some((self.block(number)?, Place { number, at: 0 }))
        } else {
            None
        };
        Ok(Some(pair))
    }

    /// The pair that comes next, and goes on against the order of the keys.
    pub(super) fn next_back(&mut self) -> io::Result<Option<RawPair>> {
        let Some((block, place)) = self.next.take() else {
            return Ok(None);
        };
        let pair = block.pair(place.at);
        if *pair.0 < *self.from {
            return Ok(None);
        }
        self.next = if let Some(at) = place.at.checked_sub(1) {
            Some((block, Place { at, ..place }))
        } else if let Some(number) = place.number.checked_sub(1) {
            let block = self.block(number)?;
            let at = block.pairs.len().saturating_sub(1);
            Some((block, Place { number, at }))
        } else {
            None
        };
        Ok(Some(pair))
    }
}
