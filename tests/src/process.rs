//! A process of a laboratory: its output goes into the timeline, and it never outlives its test.
//!
//! Three things see to that. Dropping a `Process` kills its whole process group and waits for it. `setpriv --pdeathsig`
//! makes the kernel kill it when the thread that spawned it dies, which is how it ends when the test run itself is
//! killed (a process spawned through a `Netns` is a child of that namespace's thread). And whatever forks children of its
//! own is put into a pid namespace, which dies with its first process.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::timeline::{Line, Timeline};

/// A line longer than this is cut: firmware that never sends a newline must not grow memory.
const LINE_BYTES_MAX: usize = 1024;

pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    timeline: Timeline,
    /// Its place in the timeline.
    life: usize,
    ended: Option<ExitStatus>,
}

/// A command that dies with its spawner, in a process group of its own.
pub fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", program])
        .process_group(0);
    command
}

/// As `command`, in a pid namespace: for programs that fork.
pub fn family(program: &str) -> Command {
    let mut command = command("unshare");
    command.args(["--pid", "--fork", "--kill-child=KILL", "--", program]);
    command
}

impl Process {
    /// Starts a command made by `command` or `family`; everything it prints goes to the timeline under `name`.
    pub fn start(timeline: &Timeline, name: &str, mut command: Command) -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let twin = writer.try_clone().expect("a second end of the pipe");
        command.stdin(Stdio::piped()).stdout(writer).stderr(twin);
        timeline.note(format!("{name} started: {}", said(&command)));
        let life = timeline.begin();
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name} ({}): {error}", said(&command)));
        // The command still holds the writing ends: dropping it lets the reader see the end of the output.
        drop(command);
        let stdin = child.stdin.take();
        let (lines, who) = (timeline.clone(), name.to_owned());
        std::thread::spawn(move || read_lines(reader, &lines, &who, life));
        Self {
            name: name.to_owned(),
            child,
            stdin,
            timeline: timeline.clone(),
            life,
            ended: None,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types on the process' standard input, which is a machine's serial line. Firmware has no input buffer worth the
    /// name, so each key waits until the one before has been taken.
    pub fn type_text(&mut self, text: &str) {
        let stdin = self
            .stdin
            .as_mut()
            .expect("nobody closed the standard input");
        for byte in text.bytes() {
            stdin
                .write_all(&[byte])
                .and_then(|()| stdin.flush())
                .expect("the process reads its input");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The first line it printed that holds `pattern`, waited for.
    ///
    /// # Panics
    /// With the whole story, when the limit passes or the process ends without having said it.
    pub fn wait_for(&self, pattern: &str, limit: Duration) -> Line {
        self.try_wait_for(pattern, 1, limit)
            .unwrap_or_else(|reason| panic!("{}\n{reason}", self.timeline.told()))
    }

    /// The `nth` line it printed that holds `pattern`, or why there is none.
    pub fn try_wait_for(&self, pattern: &str, nth: usize, limit: Duration) -> Result<Line, String> {
        self.timeline
            .wait_for(&self.name, self.life, pattern, nth, limit)
    }

    pub fn signal(&self, signal: Signal) {
        // The group may be gone already; then there is nobody left to tell.
        let _ = killpg(self.group(), signal);
    }

    /// Kills the group at once and collects the process, as a power cut would.
    pub fn kill(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        self.signal(Signal::SIGKILL);
        let status = self.child.wait().expect("a child can be waited for");
        self.ended = Some(status);
        status
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// With the story, when it has not ended within the limit.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{}\n{} did not end within {limit:?}",
                self.timeline.told(),
                self.name
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to stop and waits until it did.
    pub fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let status = self.wait(limit);
        if let Some(signal) = status.signal() {
            self.timeline
                .note(format!("{} ended by signal {signal}", self.name));
        }
        status
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The command as one could type it.
pub fn said(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

fn read_lines(mut from: impl Read, timeline: &Timeline, who: &str, life: usize) {
    let (mut line, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for &byte in &chunk[..count] {
            if byte == b'\n' || byte == b'\r' || line.len() == LINE_BYTES_MAX {
                say(timeline, who, life, &mut line);
            }
            if byte != b'\n' && byte != b'\r' {
                line.push(byte);
            }
        }
    }
    say(timeline, who, life, &mut line);
    timeline.end(who, life);
}

fn say(timeline: &Timeline, who: &str, life: usize, line: &mut Vec<u8>) {
    let text = without_escapes(line);
    line.clear();
    if !text.trim().is_empty() {
        timeline.add(who, life, text.trim_end().to_owned());
    }
}

/// Firmware paints its screen with ANSI sequences (ECMA-48 section 5.4): dropped, so that words stay words.
fn without_escapes(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let (mut plain, mut letters) = (String::with_capacity(text.len()), text.chars().peekable());
    while let Some(letter) = letters.next() {
        if letter == '\u{1b}' {
            if letters.next_if_eq(&'[').is_some() {
                for end in letters.by_ref() {
                    if ('\u{40}'..='\u{7e}').contains(&end) {
                        break;
                    }
                }
            } else {
                letters.next();
            }
        } else if !letter.is_control() || letter == '\t' {
            plain.push(letter);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::LAB;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_line_is_seen_without_its_paint() {
        let timeline = Timeline::default();
        let mut shell = command("printf");
        shell.arg(r"\033[2J\033[01;01HSeaBIOS\r\033[0miPXE\n");
        let process = Process::start(&timeline, "node", shell);
        assert_eq!(process.wait_for("SeaBIOS", LIMIT).text, "SeaBIOS");
        assert_eq!(process.wait_for("iPXE", LIMIT).text, "iPXE");
    }

    #[test]
    fn waiting_for_what_has_ended_is_over_at_once() {
        let timeline = Timeline::default();
        let mut process = Process::start(&timeline, "node", command("true"));
        assert!(process.wait(LIMIT).success());
        let reason = process
            .try_wait_for("never said", 1, Duration::from_secs(3600))
            .unwrap_err();
        assert_eq!(
            reason,
            "node ended without \"never said\" (wanted 1, saw 0)"
        );
    }

    #[test]
    fn what_a_process_said_in_an_earlier_life_does_not_count() {
        let timeline = Timeline::default();
        let mut shell = command("echo");
        shell.arg("once");
        let mut first = Process::start(&timeline, "node", shell);
        first.wait_for("once", LIMIT);
        first.wait(LIMIT);
        let second = Process::start(&timeline, "node", command("true"));
        assert!(second.try_wait_for("once", 1, LIMIT).is_err());
    }

    #[test]
    fn dropping_a_process_ends_its_whole_family() {
        let timeline = Timeline::default();
        let mut shell = family("sh");
        shell.args(["-c", "sleep 1000 & echo child $!; wait"]);
        let process = Process::start(&timeline, "family", shell);
        process.wait_for("child", LIMIT);
        // The pipe ends only when every process that holds its writing end is gone, so the end of the output is the proof.
        drop(process);
        let ended = timeline.wait_for(LAB, 0, "family ended", 1, LIMIT);
        ended.unwrap();
    }
}
