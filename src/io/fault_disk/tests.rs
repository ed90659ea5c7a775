use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::*;

mod adapter;
mod fault;
mod loss;
mod model;

fn random(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

fn root() -> &'static Path {
    Path::new("/")
}

/// Makes (or opens) a file and writes at its beginning.
fn write(image: &mut Image, path: &str, bytes: &[u8]) -> FileId {
    let id = image.open(Path::new(path), true).unwrap();
    image.write_at(id, 0, Bytes::copy_from_slice(bytes)).unwrap();
    id
}

/// The same, durable with its name in the root.
fn write_synced(image: &mut Image, path: &str, bytes: &[u8]) -> FileId {
    let id = write(image, path, bytes);
    image.sync_data(id).unwrap();
    image.sync_dir(root()).unwrap();
    id
}

fn append(image: &mut Image, id: FileId, bytes: &[u8]) {
    let end = image.size(id).unwrap();
    image.write_at(id, end, Bytes::copy_from_slice(bytes)).unwrap();
}

/// The whole file, as a recovery reads it.
fn read(image: &mut Image, path: &str) -> io::Result<Vec<u8>> {
    let id = image.open(Path::new(path), false)?;
    let len = usize::try_from(image.size(id)?).unwrap();
    let bytes = image.read_at(id, 0, len);
    image.close(id);
    bytes.map(|bytes| bytes.to_vec())
}

/// Fired and effective.
fn counted(image: &Image, kind: FaultKind) -> (u64, u64) {
    let count = image.counts().of(kind);
    (count.fired, count.effective)
}
