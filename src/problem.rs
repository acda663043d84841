//! One mistake in the environment file, as it is reported.

use std::fmt;

use serde::Serialize;

/// One mistake in the environment file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where, such as `backup.retention_days`.
    pub path: String,
    /// What stands there.
    pub found: String,
    /// What may stand there.
    pub allowed: String,
    /// How to fix it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            found,
            allowed,
            fix,
        } = self;
        write!(
            f,
            "  {path}\n    found:   {found}\n    allowed: {allowed}\n    fix:     {fix}"
        )
    }
}
