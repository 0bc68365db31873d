//! Many readers of one big file over HTTP/1.1, on one thread.
//!
//! Touches: a TCP connection per reader in the load's namespace, the monotonic clock.
//!
//! Bodies are thrown away inside the kernel (`MSG_TRUNC` on TCP, see tcp(7)), so that the load's core can follow a
//! server that copies nothing either. A reader asks again on the same connection when its file has ended.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};

use crate::lab::SERVER;

/// Bytes thrown away in one call at most: what a socket's receive buffer can hold, and no more.
const GULP: usize = 4 << 20;

/// What the readers got in the window after the warm-up.
pub(crate) struct Report {
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Duration,
}

struct Reader {
    stream: TcpStream,
    head: Vec<u8>,
    left: u64,
}

/// Keeps `clients` readers busy with `path` on `port`, and measures the second part of the time.
pub(crate) fn read(
    port: u16,
    path: &str,
    clients: usize,
    window: Duration,
    cpu: impl Fn() -> Result<Duration>,
) -> Result<Report> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {SERVER}:{port}\r\n\r\n");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut readers = Vec::new();
    for index in 0..clients {
        let mut stream =
            TcpStream::connect(SocketAddrV4::new(SERVER, port)).context("connecting")?;
        stream
            .write_all(request.as_bytes())
            .context("asking for a file")?;
        stream.set_nonblocking(true)?;
        epoll.add(
            stream.as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN, index as u64),
        )?;
        readers.push(Reader {
            stream,
            head: Vec::new(),
            left: 0,
        });
    }
    let mut gulp = vec![0; GULP];
    let mut events = [EpollEvent::empty(); 64];
    let mut drive = |period: Duration| -> Result<u64> {
        let (start, mut bytes) = (Instant::now(), 0);
        while start.elapsed() < period {
            let count = epoll.wait(&mut events, EpollTimeout::from(100_u8))?;
            for event in &events[..count] {
                bytes += readers[event.data() as usize].read(&request, &mut gulp)?;
            }
        }
        Ok(bytes)
    };
    drive(window / 4)?;
    let (before, start) = (cpu()?, Instant::now());
    let bytes = drive(window)?;
    Ok(Report {
        bytes,
        elapsed: start.elapsed(),
        cpu: cpu()?.saturating_sub(before),
    })
}

impl Reader {
    fn read(&mut self, request: &str, gulp: &mut [u8]) -> Result<u64> {
        if self.left == 0 {
            return self.begin();
        }
        let most = gulp.len().min(usize::try_from(self.left)?);
        match recv(
            self.stream.as_raw_fd(),
            &mut gulp[..most],
            MsgFlags::MSG_TRUNC,
        ) {
            Ok(0) => bail!(
                "the server closed a connection with {} bytes to go",
                self.left
            ),
            Ok(length) => {
                self.left -= length as u64;
                if self.left == 0 {
                    self.stream
                        .write_all(request.as_bytes())
                        .context("asking again")?;
                }
                Ok(length as u64)
            }
            Err(nix::Error::EAGAIN) => Ok(0),
            Err(error) => Err(error).context("reading a body"),
        }
    }

    /// Reads as far as the head goes, and what of the body came with it.
    fn begin(&mut self) -> Result<u64> {
        let mut buffer = [0; 4096];
        let length = match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the server closed a connection before its answer"),
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error).context("reading a head"),
        };
        self.head.extend(&buffer[..length]);
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(0);
        };
        let head = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
        ensure!(
            head.starts_with("http/1.1 200"),
            "the server answered {head}"
        );
        let total = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let total: u64 = total
            .and_then(|total| total.trim().parse().ok())
            .context("an answer without length")?;
        let came = (self.head.len() - end - 4) as u64;
        self.left = total - came;
        self.head.clear();
        Ok(came)
    }
}

/// Does anything listen?
pub(crate) fn answered(port: u16) -> bool {
    TcpStream::connect_timeout(
        &SocketAddrV4::new(SERVER, port).into(),
        Duration::from_millis(100),
    )
    .is_ok()
}
