//! A YAML file as a tree in which every value and every key knows its place. JSON is YAML too.
//!
//! It sits on the event parser beneath serde-saphyr, not on serde-saphyr itself: that stops at the first
//! duplicate key or wrong type, and it has turned `0755` into a number by the time anybody looks.
//! A scalar here is the text as written. Aliases are copies, counted like everything else against
//! [`NODES_MAX`], so that no short file becomes a long tree.

use std::borrow::Cow;
use std::collections::BTreeMap;

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, ScanError, Span};

use super::fault::{Faults, Place};

/// Values in one file, copies by alias included.
const NODES_MAX: u32 = 1_000_000;
/// Lists and maps inside each other. A site needs six.
const DEPTH_MAX: usize = 32;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node<'i> {
    pub(super) place: Place,
    pub(super) body: Body<'i>,
    /// Written without quotes, so that it may be a number or a truth value.
    pub(super) plain: bool,
    /// Nodes in it, itself included.
    weight: u32,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Body<'i> {
    /// Nothing, `~` or `null`.
    Null,
    /// Text, number or truth value: the reader decides.
    Scalar(Cow<'i, str>),
    /// A list.
    List(Vec<Node<'i>>),
    /// A map in file order; a key may come twice.
    Map(Vec<(Key<'i>, Node<'i>)>),
}

/// A key and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Key<'i> {
    pub(super) place: Place,
    pub(super) text: Cow<'i, str>,
}

impl Node<'_> {
    /// The value in a few words, for a fault.
    pub(super) fn said(&self) -> String {
        match &self.body {
            Body::Null => "nothing".to_owned(),
            Body::Scalar(text) => text.to_string(),
            Body::List(list) => format!("a list of {}", list.len()),
            Body::Map(map) => {
                let keys: Vec<&str> = map.iter().take(4).map(|(key, _)| &*key.text).collect();
                format!("a map of {}", keys.join(", "))
            }
        }
    }
}

/// Parses `text`; `None` after a fault that left no tree. An empty file is a null.
pub(super) fn parse<'i>(text: &'i str, file: Place, faults: &Faults) -> Option<Node<'i>> {
    let options = granit_parser::options! {
        emit_comments: false,
        disallow_directives: true,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    let mut tree = Tree::new(text, options, file);
    match tree.document() {
        Ok(node) => Some(node),
        Err(stop) => {
            faults.add(stop.place, "", "", stop.problem, stop.remedy);
            None
        }
    }
}

struct Tree<'i> {
    events: Parser<'i, granit_parser::StrInput<'i>>,
    anchors: BTreeMap<usize, Node<'i>>,
    nodes: u32,
    file: Place,
}

/// What ends the reading of a file.
struct Stop {
    place: Place,
    problem: String,
    remedy: String,
}

type Next<'i> = (Event<'i>, Span);

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the parser's events may grow, and one that has no place here is a fault whatever it is"
)]
impl<'i> Tree<'i> {
    fn new(text: &'i str, options: Options, file: Place) -> Self {
        Self {
            events: Parser::new_from_str_with_options(text, options),
            anchors: BTreeMap::new(),
            nodes: 0,
            file,
        }
    }

    fn document(&mut self) -> Result<Node<'i>, Stop> {
        let mut document = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) if document.is_some() => {
                    return Err(self.stop(
                        span,
                        "a second document begins here",
                        "keep one document in a file; remove the `---`",
                    ));
                }
                Event::DocumentStart(..) => {
                    let next = self.next()?;
                    document = Some(self.node(next)?);
                }
                _ => return Err(self.stop(span, "is out of place", "check the indentation")),
            }
        }
        Ok(document.unwrap_or(Node {
            place: Place {
                line: 1,
                column: 1,
                ..self.file
            },
            body: Body::Null,
            plain: true,
            weight: 1,
        }))
    }

    fn node(&mut self, (event, span): Next<'i>) -> Result<Node<'i>, Stop> {
        let place = self.place(span.start);
        self.weigh(1, span)?;
        let mut plain = false;
        let (body, anchor, tag) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                plain = style == ScalarStyle::Plain;
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let body = if null { Body::Null } else { Body::Scalar(text) };
                (body, anchor, tag)
            }
            Event::SequenceStart(_, anchor, tag) => (self.list()?, anchor, tag),
            Event::MappingStart(_, anchor, tag) => (self.map()?, anchor, tag),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.stop(
                        span,
                        "an alias stands inside the value that it names",
                        "write the value out",
                    ));
                };
                self.weigh(node.weight, span)?;
                return Ok(node);
            }
            _ => return Err(self.stop(span, "a value is missing here", "check the indentation")),
        };
        if tag.is_some() {
            return Err(self.stop(
                span,
                "a value carries a tag, which means nothing here",
                "remove the word that begins with an exclamation mark, or quote the value",
            ));
        }
        let weight = 1 + match &body {
            Body::Null | Body::Scalar(_) => 0,
            Body::List(list) => list.iter().map(|node| node.weight).sum(),
            Body::Map(map) => map.iter().map(|(_, node)| node.weight).sum(),
        };
        let node = Node {
            place,
            body,
            plain,
            weight,
        };
        if anchor != 0 {
            // The kept copy is memory like any other, so it is counted like any other.
            self.weigh(weight, span)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self) -> Result<Body<'i>, Stop> {
        let mut list = Vec::new();
        loop {
            let next = self.next()?;
            if next.0 == Event::SequenceEnd {
                return Ok(Body::List(list));
            }
            list.push(self.node(next)?);
        }
    }

    fn map(&mut self) -> Result<Body<'i>, Stop> {
        let mut map = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(Body::Map(map)),
                Event::Scalar(text, ..) => Key {
                    place: self.place(span.start),
                    text,
                },
                _ => {
                    return Err(self.stop(
                        span,
                        "a key is not a plain word",
                        "write `key: value` with a word for the key",
                    ));
                }
            };
            let next = self.next()?;
            map.push((key, self.node(next)?));
        }
    }

    fn next(&mut self) -> Result<Next<'i>, Stop> {
        match self.events.next() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Err(Stop {
                place: self.file,
                problem: "the file ends too early".to_owned(),
                remedy: "complete it".to_owned(),
            }),
        }
    }

    fn weigh(&mut self, weight: u32, span: Span) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(weight);
        if self.nodes > NODES_MAX {
            return Err(self.stop(
                span,
                "the file holds more values than the 1,000,000 that are read, aliases counted in full",
                "split it over machines.d, and write fewer aliases",
            ));
        }
        Ok(())
    }

    fn syntax(&self, error: &ScanError) -> Stop {
        Stop {
            place: self.place(*error.marker()),
            problem: format!("this is not YAML: {}", error.info()),
            remedy: "correct it; nothing after this line was read".to_owned(),
        }
    }

    fn stop(&self, span: Span, problem: &str, remedy: &str) -> Stop {
        Stop {
            place: self.place(span.start),
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    fn place(&self, marker: Marker) -> Place {
        Place {
            line: u32::try_from(marker.line()).unwrap_or(u32::MAX),
            column: u32::try_from(marker.col() + 1).unwrap_or(u32::MAX),
            ..self.file
        }
    }
}
