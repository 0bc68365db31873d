//! `GET|HEAD /artifacts/<sha256>/<name>`: a file of the depot, whole or a range of it.
//!
//! The digest is the file, so the entity tag is the digest and an answer may be kept for ever.
//! The name only chooses the content type and is never a path. Plain connections are fed by
//! sendfile(2) straight from the page cache; TLS copies.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use images::Depot;
use netboot::net::Digest;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::sendfile::sendfile;
use socket2::SockRef;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use super::wire::{Method, Request};
use super::{Body, Refusal, Reply, Told};

/// From here on a file is worth a word to the kernel: it reads this much ahead without one (128 KiB, Linux
/// `VM_READAHEAD_PAGES`).
const READ_AHEAD_BYTES: u64 = 128 << 10;

/// A slice of a file on its way out.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) file: File,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The slowest that a reader may be: so many bytes in every window of time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub window: Duration,
    pub bytes: u64,
}

/// Why a body did not leave whole.
#[derive(Debug)]
pub(super) enum Cut {
    Slow,
    Gone,
}

/// Answers for `<sha256>/<name>`, the rest of the path.
pub(super) fn answer(depot: &Depot, request: &Request, rest: &str) -> Result<Reply, Refusal> {
    let (digest, name) = rest.split_once('/').ok_or(Refusal::UnknownPath)?;
    if name.contains('/') {
        return Err(Refusal::UnknownPath);
    }
    let digest: Digest = digest.parse().map_err(|_| Refusal::UnknownPath)?;
    let file = match depot.file(&digest) {
        Ok(Some(file)) => file,
        Ok(None) => return Err(Refusal::UnknownArtifact),
        Err(error) => {
            tracing::error!(%digest, %error, "an artefact can't be opened, look at the depot's modes and limits");
            return Err(Refusal::Broken);
        }
    };
    let size = file.metadata().map_err(|_| Refusal::Broken)?.len();
    let tag = format!("\"{digest}\"");
    if let Some(expected) = &request.if_match
        && !names(expected, &tag)
    {
        return Err(Refusal::Precondition);
    }
    let mut reply = Reply::empty(200)
        .with("Content-Type", content_type(name))
        .with("ETag", tag.clone())
        .with("Accept-Ranges", "bytes")
        .with("Cache-Control", "public, max-age=31536000, immutable");
    if let Some(known) = &request.if_none_match
        && names(known, &tag)
    {
        reply.status = 304;
        return Ok(reply);
    }
    // RFC 9110 section 13.1.5: a failed If-Range means "ignore the Range header field". There is
    // no Last-Modified here, so a date fails too.
    let current = request
        .if_range
        .as_ref()
        .is_none_or(|validator| *validator == tag);
    // RFC 9110 section 14.2: Range is only defined for GET.
    let range = match &request.range {
        Some(text) if current && request.method == Method::Get => range(text, size),
        _ => Range::Whole,
    };
    let (offset, length) = match range {
        Range::Whole => (0, size),
        Range::Part { first, last } => {
            reply.status = 206;
            reply = reply.with("Content-Range", format!("bytes {first}-{last}/{size}"));
            (first, last - first + 1)
        }
        Range::Outside => {
            return Ok(Reply {
                status: 416,
                ..reply
            }
            .with("Content-Range", format!("bytes */{size}")));
        }
    };
    if request.method == Method::Get && length >= READ_AHEAD_BYTES {
        // Advice only: a cold file then comes off the disk ahead of the reader.
        let _ = posix_fadvise(
            &file,
            offset as i64,
            length as i64,
            PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL,
        );
    }
    reply.body = Body::File(Slice {
        file,
        offset,
        length,
    });
    reply.transfer = Some(Told {
        file: name.to_owned(),
        digest: Some(digest),
        offset,
        size,
    });
    Ok(reply)
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { first: u64, last: u64 },
    Outside,
}

/// RFC 9110 section 14.2: a range that can't be parsed, of another unit, or one of several, may be
/// ignored; "unsatisfiable" is only a well-formed one that selects nothing.
fn range(text: &str, size: u64) -> Range {
    let number = |digits: &str| -> Option<u64> {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // A number too large for a file is still a number.
        plain.then(|| digits.parse().unwrap_or(u64::MAX))
    };
    let Some((unit, set)) = text.split_once('=') else {
        return Range::Whole;
    };
    let Some((first, last)) = set.trim().split_once('-') else {
        return Range::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Range::Whole;
    }
    match (number(first.trim()), last.trim()) {
        (None, suffix) if first.trim().is_empty() => match number(suffix) {
            Some(0) => Range::Outside,
            Some(_) if size == 0 => Range::Outside,
            Some(count) => Range::Part {
                first: size.saturating_sub(count),
                last: size - 1,
            },
            None => Range::Whole,
        },
        (None, _) => Range::Whole,
        (Some(first), "") if first < size => Range::Part {
            first,
            last: size - 1,
        },
        (Some(_), "") => Range::Outside,
        (Some(first), last) => match number(last) {
            Some(last) if last < first => Range::Whole,
            Some(last) if first < size => Range::Part {
                first,
                last: last.min(size - 1),
            },
            Some(_) => Range::Outside,
            None => Range::Whole,
        },
    }
}

/// Whether a list of entity tags holds this one. Our tags are strong, so W/ never matches by text.
fn names(list: &str, tag: &str) -> bool {
    list.split(',')
        .map(str::trim)
        .any(|entry| entry == "*" || entry == tag)
}

/// EDK2 takes an image for bootable by its content type or by its suffix.
pub(super) fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, suffix)| suffix) {
        "efi" => "application/efi",
        "iso" => "application/vnd.efi-iso",
        "ign" => "application/vnd.coreos.ignition+json",
        "json" => "application/json",
        "ipxe" | "txt" | "cfg" => "text/plain; charset=utf-8",
        "yaml" | "yml" => "application/yaml",
        _ => "application/octet-stream",
    }
}

/// Sends a slice, counting what has left in `sent`.
pub(super) async fn send(
    wire: &mut super::Wire,
    slice: &Slice,
    pace: Pace,
    sent: &AtomicU64,
) -> Result<(), Cut> {
    let transfer = async {
        match wire {
            super::Wire::Left(stream) => by_sendfile(stream, slice, sent).await,
            super::Wire::Right(stream) => by_copy(stream, slice, sent).await,
        }
    };
    paced(transfer, pace, sent).await
}

/// Runs a transfer, and cuts it off when a window passes without enough progress.
pub(super) async fn paced(
    transfer: impl Future<Output = io::Result<()>>,
    pace: Pace,
    sent: &AtomicU64,
) -> Result<(), Cut> {
    let watch = async {
        let mut before = sent.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(pace.window).await;
            let now = sent.load(Ordering::Relaxed);
            if now - before < pace.bytes {
                return;
            }
            before = now;
        }
    };
    tokio::select! {
        biased;
        done = transfer => done.map_err(|_| Cut::Gone),
        () = watch => Err(Cut::Slow),
    }
}

async fn by_sendfile(stream: &TcpStream, slice: &Slice, sent: &AtomicU64) -> io::Result<()> {
    /// What one call may move.
    const CHUNK: u64 = 2 << 20;
    let mut offset = slice.offset as i64;
    let end = slice.offset + slice.length;
    // Corked, every packet but the last is full, wherever our chunks end.
    let corked = slice.length > CHUNK;
    if corked {
        SockRef::from(stream).set_tcp_cork(true)?;
    }
    while (offset as u64) < end {
        let moved = stream
            .async_io(Interest::WRITABLE, || {
                let count = (end - offset as u64).min(CHUNK) as usize;
                sendfile(stream, &slice.file, Some(&mut offset), count).map_err(io::Error::from)
            })
            .await?;
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sent.fetch_add(moved as u64, Ordering::Relaxed);
        // Readers take turns. One that is read dry as fast as it is filled would keep the thread, and
        // fifty that are filled to the brim, one after the other, cost twice the memory traffic.
        tokio::task::yield_now().await;
    }
    if corked {
        SockRef::from(stream).set_tcp_cork(false)?;
    }
    Ok(())
}

async fn by_copy(
    stream: &mut (impl AsyncWrite + Unpin),
    slice: &Slice,
    sent: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = slice.offset;
    let end = slice.offset + slice.length;
    while offset < end {
        let wanted = (end - offset).min(buffer.len() as u64) as usize;
        let read = slice.file.read_at(&mut buffer[..wanted], offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.write_all(&buffer[..read]).await?;
        offset += read as u64;
        sent.fetch_add(read as u64, Ordering::Relaxed);
    }
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_selects_what_rfc_9110_says() {
        for (text, size, expected) in [
            ("bytes=0-", 10, Range::Part { first: 0, last: 9 }),
            ("bytes=0-0", 10, Range::Part { first: 0, last: 0 }),
            ("bytes=3-99", 10, Range::Part { first: 3, last: 9 }),
            ("BYTES = 3-4", 10, Range::Part { first: 3, last: 4 }),
            ("bytes=-3", 10, Range::Part { first: 7, last: 9 }),
            ("bytes=-30", 10, Range::Part { first: 0, last: 9 }),
            ("bytes=10-", 10, Range::Outside),
            ("bytes=10-12", 10, Range::Outside),
            ("bytes=99999999999999999999999-", 10, Range::Outside),
            ("bytes=-0", 10, Range::Outside),
            ("bytes=0-", 0, Range::Outside),
            ("bytes=-1", 0, Range::Outside),
            ("bytes=5-3", 10, Range::Whole),
            ("bytes=0-1,3-4", 10, Range::Whole),
            ("bytes=+1-2", 10, Range::Whole),
            ("bytes=a-b", 10, Range::Whole),
            ("bytes=-", 10, Range::Whole),
            ("bytes=--1", 10, Range::Whole),
            ("rows=0-1", 10, Range::Whole),
            ("", 10, Range::Whole),
        ] {
            assert_eq!(range(text, size), expected, "{text:?} of {size}");
        }
    }

    #[test]
    fn firmware_is_told_that_an_efi_file_is_one() {
        assert_eq!(content_type("snponly.efi"), "application/efi");
        assert_eq!(content_type("initrd"), "application/octet-stream");
    }
}
