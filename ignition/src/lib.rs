//! What a machine becomes: profile and variables in, the finished document of one node out. Pure.
