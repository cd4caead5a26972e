//! The image stream (docs/design.md section 3) as a peer sees it that knows only the
//! fields 1 to 5 of a marker. Written by hand, down to the protobuf, so that a
//! mistake in `wire-format` finds no accomplice here. The reader is strict; the
//! [`Writer`] writes whatever it is told, the malformed included.

use std::collections::{BTreeMap, BTreeSet};

/// The longest marker, in bytes.
pub const LONGEST_MARKER: usize = 10 * 1024;

/// An image: its files' content by their names.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What a marker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The markers that follow belong to this file.
    Filename(Vec<u8>),
    /// That many bytes follow.
    FileData(u32),
    /// The current file is complete.
    FileEof,
    /// The image is complete.
    ImageEof,
}

/// A marker with the payload that follows it.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// The marker's place in the sequence.
    pub seq: u64,
    /// What it says.
    pub body: Body,
    /// The numbers of the fields beyond 5, which were skipped.
    pub skipped: BTreeSet<u64>,
    /// The payload.
    pub payload: &'a [u8],
}

/// The image in a stream, or what is wrong with the stream.
pub fn read_stream(bytes: &[u8]) -> Result<Files, String> {
    let records = records(bytes)?;
    in_sequence(&records)?;
    assemble(&records)
}

/// The image in a set of shards, or what is wrong with the set.
pub fn read_shards(shards: &[Vec<u8>]) -> Result<Files, String> {
    let mut all = Vec::new();
    for (index, shard) in shards.iter().enumerate() {
        let records = records(shard).map_err(|cause| format!("shard {index}: {cause}"))?;
        if let Some(pair) = records.windows(2).find(|pair| pair[0].seq >= pair[1].seq) {
            return Err(format!("shard {index}: {} before {}", pair[0].seq, pair[1].seq));
        }
        all.extend(records);
    }
    all.sort_by_key(|record| record.seq);
    in_sequence(&all)?;
    assemble(&all)
}

/// Whether an `image_eof` stands anywhere in what can be read of `bytes`, which
/// may be cut off: such a stream looks complete to somebody.
pub fn looks_complete(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Ok(Some(record)) = next_record(&mut rest) {
        if record.body == Body::ImageEof {
            return true;
        }
    }
    false
}

/// The markers of a stream or a shard, with their payloads.
pub fn records(bytes: &[u8]) -> Result<Vec<Record<'_>>, String> {
    let mut rest = bytes;
    let mut records = Vec::new();
    while let Some(record) = next_record(&mut rest)
        .map_err(|cause| format!("byte {}: {cause}", bytes.len() - rest.len()))?
    {
        records.push(record);
    }
    Ok(records)
}

/// Deals the records of a stream to `count` shards: the record number `i` goes
/// to shard `to(i)`.
pub fn deal(stream: &[u8], count: usize, mut to: impl FnMut(usize) -> usize) -> Vec<Vec<u8>> {
    let mut shards = vec![Vec::new(); count];
    let mut rest = stream;
    let mut index = 0;
    loop {
        let before = rest;
        match next_record(&mut rest).expect("only a well-formed stream can be dealt") {
            Some(_) => shards[to(index)].extend_from_slice(&before[..before.len() - rest.len()]),
            None => return shards,
        }
        index += 1;
    }
}

fn in_sequence(records: &[Record<'_>]) -> Result<(), String> {
    match (0..).zip(records).find(|(expected, record)| *expected != record.seq) {
        Some((expected, record)) => Err(format!("seq {} where {expected} belongs", record.seq)),
        None => Ok(()),
    }
}

fn assemble(records: &[Record<'_>]) -> Result<Files, String> {
    let mut complete = Files::new();
    let mut open = Files::new();
    let mut current: Option<String> = None;
    let (last, before) = records.split_last().ok_or("nothing at all")?;
    if last.body != Body::ImageEof {
        return Err("ends without image_eof".into());
    }
    for record in before {
        let misplaced = || format!("seq {}: {:?} out of place", record.seq, record.body);
        match &record.body {
            Body::Filename(name) => {
                let name = file_name(name)?;
                open.entry(name.clone()).or_default();
                current = Some(name);
            }
            Body::FileData(_) => {
                let name = current.as_ref().ok_or_else(misplaced)?;
                open.entry(name.clone()).or_default().extend_from_slice(record.payload);
            }
            Body::FileEof => {
                let name = current.take().ok_or_else(misplaced)?;
                let content = open.remove(&name).expect("the current file is open");
                complete.insert(name, content);
            }
            Body::ImageEof => return Err(misplaced()),
        }
    }
    match open.keys().next() {
        Some(name) => Err(format!("{name} never ended")),
        None => Ok(complete),
    }
}

fn file_name(name: &[u8]) -> Result<String, String> {
    let name = std::str::from_utf8(name).map_err(|_| "a name that isn't UTF-8")?;
    let forbidden = name.contains(['/', '\0']) || matches!(name, "" | "." | "..");
    if forbidden || name.len() > 255 {
        return Err(format!("{name:?} is no file name"));
    }
    Ok(name.into())
}

/// Takes the next record off `rest`; `None` where it ends between two records.
fn next_record<'a>(rest: &mut &'a [u8]) -> Result<Option<Record<'a>>, String> {
    if rest.is_empty() {
        return Ok(None);
    }
    let mut input = *rest;
    let length = take(&mut input, 4)?;
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    if length > LONGEST_MARKER {
        return Err(format!("a marker of {length} bytes"));
    }
    let (seq, body, skipped) = decode(take(&mut input, length)?)?;
    let payload = match body {
        Body::FileData(size) => take(&mut input, size as usize)?,
        _ => &[],
    };
    *rest = input;
    Ok(Some(Record { seq, body, skipped, payload }))
}

fn decode(mut marker: &[u8]) -> Result<(u64, Body, BTreeSet<u64>), String> {
    let (mut seq, mut body, mut skipped) = (0, None, BTreeSet::new());
    while !marker.is_empty() {
        let key = varint(&mut marker)?;
        match (key >> 3, key & 7) {
            (1, 0) => seq = varint(&mut marker)?,
            (2, 2) => body = Some(Body::Filename(delimited(&mut marker)?.to_vec())),
            (3, 0) => {
                let size =
                    u32::try_from(varint(&mut marker)?).map_err(|_| "file_data too large")?;
                body = Some(Body::FileData(size));
            }
            (4, 0) => {
                varint(&mut marker)?;
                body = Some(Body::FileEof);
            }
            (5, 0) => {
                varint(&mut marker)?;
                body = Some(Body::ImageEof);
            }
            (field @ 1..=5, wire_type) => {
                return Err(format!("field {field} with wire type {wire_type}"));
            }
            (field, wire_type) => {
                skip(wire_type, &mut marker)?;
                skipped.insert(field);
            }
        }
    }
    Ok((seq, body.ok_or("a marker without a body")?, skipped))
}

fn skip(wire_type: u64, input: &mut &[u8]) -> Result<(), String> {
    match wire_type {
        0 => varint(input).map(drop),
        1 => take(input, 8).map(drop),
        2 => delimited(input).map(drop),
        5 => take(input, 4).map(drop),
        _ => Err(format!("wire type {wire_type}")),
    }
}

fn delimited<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let length = varint(input)? as usize;
    take(input, length)
}

fn varint(input: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(input, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a varint of more than ten bytes".into())
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    if length > input.len() {
        return Err(format!("cut off: {length} bytes wanted, {} there", input.len()));
    }
    let (taken, rest) = input.split_at(length);
    *input = rest;
    Ok(taken)
}

/// Writes a stream, marker by marker. Numbers them from 0 unless told otherwise,
/// and checks nothing.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    seq: u64,
}

impl Writer {
    /// A stream with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// What has been written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// The next marker has this number.
    pub fn seq(mut self, seq: u64) -> Self {
        self.seq = seq;
        self
    }

    /// A marker with the next number.
    pub fn marker(self, body: &Body) -> Self {
        let protobuf = encode(self.seq, body);
        self.protobuf(&protobuf)
    }

    /// The markers that follow belong to the file `name`.
    pub fn name(self, name: impl AsRef<[u8]>) -> Self {
        self.marker(&Body::Filename(name.as_ref().to_vec()))
    }

    /// A chunk of the current file.
    pub fn data(self, payload: &[u8]) -> Self {
        let size = payload.len().try_into().expect("a chunk below 4 GiB");
        self.marker(&Body::FileData(size)).raw(payload)
    }

    /// The current file is complete.
    pub fn file_eof(self) -> Self {
        self.marker(&Body::FileEof)
    }

    /// A whole file, in one chunk.
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        let named = self.name(name);
        let filled = if content.is_empty() { named } else { named.data(content) };
        filled.file_eof()
    }

    /// The image is complete.
    pub fn image_eof(self) -> Self {
        self.marker(&Body::ImageEof)
    }

    /// The current file is complete, and all files have been named.
    pub fn all_named(self) -> Self {
        let mut protobuf = encode(self.seq, &Body::FileEof);
        put_varint(&mut protobuf, 103 << 3);
        protobuf.push(1);
        self.protobuf(&protobuf)
    }

    /// These bytes, in the place of a marker's protobuf, with their length.
    pub fn protobuf(mut self, protobuf: &[u8]) -> Self {
        self.bytes.extend_from_slice(&(protobuf.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(protobuf);
        self.seq += 1;
        self
    }

    /// A marker of exactly `length` bytes: `body`, and a field that nobody knows.
    pub fn padded_marker(self, body: &Body, length: usize) -> Self {
        let mut protobuf = encode(self.seq, body);
        put_varint(&mut protobuf, 999 << 3 | 2);
        // A length of 128 to 16383 takes two bytes.
        let padding = length - protobuf.len() - 2;
        assert!((128..16384).contains(&padding), "a marker of {length} bytes can't be padded");
        put_varint(&mut protobuf, padding as u64);
        protobuf.resize(length, 0);
        self.protobuf(&protobuf)
    }

    /// A marker with the fields of ours that say whose shard this is.
    pub fn identified_marker(self, body: &Body, image_id: [u8; 16], shard: u64, of: u64) -> Self {
        let mut protobuf = encode(self.seq, body);
        put_varint(&mut protobuf, 100 << 3 | 2);
        put_varint(&mut protobuf, image_id.len() as u64);
        protobuf.extend_from_slice(&image_id);
        for (field, value) in [(101, shard), (102, of)] {
            put_varint(&mut protobuf, field << 3);
            put_varint(&mut protobuf, value);
        }
        self.protobuf(&protobuf)
    }

    /// A marker with the fields of ours that say which image this is, and of which it is an
    /// increment.
    pub fn increment_marker(
        self,
        body: &Body,
        image_id: [u8; 16],
        parent_id: Option<[u8; 16]>,
    ) -> Self {
        let mut protobuf = encode(self.seq, body);
        let ids = [(100, Some(image_id)), (105, parent_id)];
        for (field, id) in ids.into_iter().filter_map(|(field, id)| Some((field, id?))) {
            put_varint(&mut protobuf, field << 3 | 2);
            put_varint(&mut protobuf, id.len() as u64);
            protobuf.extend_from_slice(&id);
        }
        self.protobuf(&protobuf)
    }

    /// The same for a shard of some split, which may be the metadata shard.
    pub fn split_marker(self, body: &Body, shard: u64, of: u64, metadata: bool) -> Self {
        let mut protobuf = encode(self.seq, body);
        for field in [100, 106] {
            put_varint(&mut protobuf, field << 3 | 2);
            put_varint(&mut protobuf, 16);
            protobuf.extend_from_slice(&[field as u8; 16]);
        }
        for (field, value) in [(101, shard), (102, of), (104, u64::from(metadata))] {
            put_varint(&mut protobuf, field << 3);
            put_varint(&mut protobuf, value);
        }
        self.protobuf(&protobuf)
    }

    /// These bytes, as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }
}

/// The protobuf of a marker.
pub fn encode(seq: u64, body: &Body) -> Vec<u8> {
    let mut marker = Vec::new();
    if seq != 0 {
        put_varint(&mut marker, 1 << 3);
        put_varint(&mut marker, seq);
    }
    match body {
        Body::Filename(name) => {
            put_varint(&mut marker, 2 << 3 | 2);
            put_varint(&mut marker, name.len() as u64);
            marker.extend_from_slice(name);
        }
        Body::FileData(size) => {
            put_varint(&mut marker, 3 << 3);
            put_varint(&mut marker, u64::from(*size));
        }
        Body::FileEof => marker.extend_from_slice(&[4 << 3, 1]),
        Body::ImageEof => marker.extend_from_slice(&[5 << 3, 1]),
    }
    marker
}

fn put_varint(output: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        output.push(value as u8 | 0x80);
        value >>= 7;
    }
    output.push(value as u8);
}
