// docs/PROTOCOL.md as far as a customer needs it: digests, signed orders, tokens, inclusion proofs. Nothing here talks to
// anybody. Section numbers are that page's. What is wrong throws `Refused`.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace mesh {

using Bytes = std::string;

struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Bytes sha256(const Bytes& data);
Bytes tagged(const std::string& tag, const Bytes& data);
Bytes digest(const std::string& domain, const std::string& chain, const Bytes& body);
std::string hex(const Bytes& data);
Bytes unhex(const std::string& text);

// Section 1: the digest of a flat payload of numbers and texts.
using Value = std::variant<double, std::string>;
Bytes payload_digest(const std::map<std::string, Value>& payload);

// An account's key: ECDSA on secp256k1, RFC 6979, low S.
class Key {
 public:
  explicit Key(const Bytes& secret);
  const Bytes& public_key() const { return public_; }
  Bytes sign(const std::string& domain, const std::string& chain, const Bytes& body) const;
  // Section 4: `cm1.`... for the `authorization: Bearer` metadata.
  std::string token(const std::string& chain, std::uint64_t expires_ms) const;

 private:
  Bytes secret_, public_;
};

// Section 4: the order, 164 bytes. Its digest is the task id.
struct Order {
  Bytes request_id, customer_key, market_key;
  std::string challenge_type;
  Bytes payload_digest;
  std::uint64_t reward_units, deadline_ms;
  std::uint8_t priority;
  Bytes pack() const;
};

// A result that is proven to stand in a block of the log.
struct Proven {
  Bytes result_hash;
  std::uint64_t height, log_size;
};

struct Proof {
  Bytes result, header;
  std::uint64_t leaf_index;
  std::vector<Bytes> compute_path, header_path;
  std::string note;
};

// Result in block, block in log, log signed by `vkey` (sections 2, 4, 7).
Proven verify_inclusion(const Proof& proof, const Bytes& task_id, std::uint32_t job, const std::string& vkey,
                        const std::string& chain);

}  // namespace mesh
