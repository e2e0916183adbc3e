//! What stands in a line: an order, or its answer.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// One order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    version: u32,
    /// What is to be done: `forward.list`.
    pub command: String,
    /// With what.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub arguments: Map<String, Value>,
}

/// What becomes of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    version: u32,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Whether an order was carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was; what there is to say.
    Ok(Value),
    /// It was not, for this reason.
    Error(String),
}

/// Why a line is no order.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BadRequest {
    /// It is not the JSON of an order.
    #[error("this is no order: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another version of the program.
    #[error(
        "the order is of version {found} and this program speaks version {VERSION}: use the same adit for both"
    )]
    Version {
        /// Its version.
        found: u32,
    },
}

impl Request {
    /// Makes an order.
    pub fn new(command: &str, arguments: Map<String, Value>) -> Self {
        Self {
            version: VERSION,
            command: command.to_owned(),
            arguments,
        }
    }

    /// Reads a line.
    ///
    /// # Errors
    ///
    /// [`BadRequest`].
    pub fn parse(line: &[u8]) -> Result<Self, BadRequest> {
        let request: Self = serde_json::from_slice(line)?;
        if request.version == VERSION {
            Ok(request)
        } else {
            Err(BadRequest::Version {
                found: request.version,
            })
        }
    }

    /// Gives an argument that is a text.
    ///
    /// # Errors
    ///
    /// A sentence: it is missing, or is none.
    pub fn text(&self, name: &str) -> Result<&str, String> {
        let value = self.arguments.get(name).and_then(Value::as_str);
        value.ok_or_else(|| format!("{} needs `{name}`, a text", self.command))
    }

    /// Gives an argument that is a number.
    ///
    /// # Errors
    ///
    /// A sentence: it is missing, or is none.
    pub fn number(&self, name: &str) -> Result<u64, String> {
        let value = self.arguments.get(name).and_then(Value::as_u64);
        value.ok_or_else(|| format!("{} needs `{name}`, a number", self.command))
    }

    /// Writes it as a line.
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }
}

impl Answer {
    /// Makes an answer.
    pub fn new(outcome: Result<Value, String>) -> Self {
        Self {
            version: VERSION,
            outcome: match outcome {
                Ok(value) => Outcome::Ok(value),
                Err(message) => Outcome::Error(message),
            },
        }
    }

    /// Reads a line.
    ///
    /// # Errors
    ///
    /// It is no answer.
    pub fn parse(line: &[u8]) -> Result<Result<Value, String>, serde_json::Error> {
        let answer: Self = serde_json::from_slice(line)?;
        Ok(match answer.outcome {
            Outcome::Ok(value) => Ok(value),
            Outcome::Error(message) => Err(message),
        })
    }

    /// Writes it as a line.
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }
}

fn line(of: &impl Serialize) -> Vec<u8> {
    // Texts, numbers and maps with text keys: nothing that JSON cannot say.
    let mut line = serde_json::to_vec(of).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The version of orders and answers. Another one is spoken when an old program would misunderstand; orders and fields
/// that are new do not change it.
pub const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn orders_and_answers_survive_a_round_trip() {
        let mut arguments = Map::new();
        arguments.insert("forward".into(), json!("-L 1:h:2"));
        arguments.insert("id".into(), json!(7));
        let request = Request::new("forward.add", arguments);
        let line = request.line();
        assert!(line.ends_with(b"\n") && line.iter().filter(|b| **b == b'\n').count() == 1);
        let read = Request::parse(&line).unwrap();
        assert_eq!(read, request);
        assert_eq!(
            (read.text("forward"), read.number("id")),
            (Ok("-L 1:h:2"), Ok(7))
        );
        assert!(read.text("id").is_err_and(|error| error.contains("`id`")));
        for outcome in [Ok(json!({"id": 3})), Ok(Value::Null), Err("no".to_owned())] {
            let line = Answer::new(outcome.clone()).line();
            assert_eq!(Answer::parse(&line).unwrap(), outcome);
        }
    }

    #[test]
    fn lines_that_are_no_orders_say_what_is_wrong() {
        for (line, right) in [
            ("", "no order"),
            ("forward list", "no order"),
            ("{}", "missing field `version`"),
            (r#"{"version":1}"#, "missing field `command`"),
            (r#"{"version":1,"command":7}"#, "invalid type"),
            (
                r#"{"version":2,"command":"x"}"#,
                "use the same adit for both",
            ),
            (
                r#"{"version":1,"command":"x","arguments":[]}"#,
                "invalid type",
            ),
        ] {
            let error = Request::parse(line.as_bytes()).expect_err(line).to_string();
            assert!(error.contains(right), "{line}: {error}");
        }
        assert!(Request::parse(b"{\"version\":1,\"command\":\"\xff\"}").is_err());
    }
}
