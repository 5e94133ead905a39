// Signs an order, publishes it, watches the task to its end, and verifies the inclusion proof of each job itself.
//
//   publish --key FILE [--market HOST:PORT] [--vkey VKEY] [--size N] [--reward CPC] [--tamper]
//
// FILE holds the customer's private key, 64 hexadecimal characters. VKEY is the ledger's checkpoint key as you know it;
// without it the market's word is taken. `--tamper` flips one bit of each proof, which must be refused. Exit status 0 if
// everything held, 1 otherwise.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <random>
#include <thread>

#include "computemesh/v1/ledger.grpc.pb.h"
#include "computemesh/v1/market.grpc.pb.h"
#include "protocol.hpp"

namespace v1 = computemesh::v1;
using std::chrono::seconds;
using std::chrono::system_clock;

namespace {

constexpr auto kCall = seconds(15);
constexpr auto kTask = seconds(300);
constexpr int kReconnects = 20;

[[noreturn]] void fail(const std::string& problem) { throw std::runtime_error(problem); }

std::map<std::string, std::string> parse(int count, char** words) {
  std::map<std::string, std::string> options{
      {"key", ""}, {"market", "127.0.0.1:7102"}, {"vkey", ""}, {"size", "256"}, {"reward", "10.0"}, {"tamper", ""}};
  for (int at = 1; at < count; ++at) {
    const std::string name = std::string(words[at]).rfind("--", 0) == 0 ? words[at] + 2 : "";
    if (!options.count(name)) fail(std::string("unknown argument ") + words[at]);
    if (name == "tamper") {
      options[name] = "yes";
    } else if (++at < count) {
      options[name] = words[at];
    } else {
      fail("--" + name + " needs a value");
    }
  }
  if (options["key"].empty()) fail("--key FILE is needed: the customer's private key");
  return options;
}

mesh::Key read_key(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  if (!(file >> text)) fail(path + " cannot be read");
  return mesh::Key(mesh::unhex(text));
}

// Decimal CPC as base units, exactly: a double would not do for money.
std::uint64_t units(const std::string& reward) {
  const auto point = reward.find('.');
  std::string whole = reward.substr(0, point), part = point == std::string::npos ? "" : reward.substr(point + 1);
  if (whole.empty() || part.size() > 6 || (whole + part).find_first_not_of("0123456789") != std::string::npos ||
      whole.size() > 12) {
    fail("--reward " + reward + " is not decimal CPC with at most 6 decimals");
  }
  part.resize(6, '0');
  return std::stoull(whole + part);
}

// A random UUID (RFC 9562 version 4), 16 bytes.
mesh::Bytes new_request_id() {
  std::random_device chance;
  mesh::Bytes id(16, '\0');
  for (char& byte : id) byte = static_cast<char>(chance());
  id[6] = static_cast<char>((id[6] & 0x0f) | 0x40);
  id[8] = static_cast<char>((id[8] & 0x3f) | 0x80);
  return id;
}

template <class Stub, class Request, class Reply>
Reply call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Reply*), const Request& request,
           const std::string& token = "") {
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + kCall);
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  Reply reply;
  const grpc::Status status = (stub.*method)(&context, request, &reply);
  if (!status.ok()) fail(status.error_message());
  return reply;
}

class Customer {
 public:
  Customer(std::map<std::string, std::string> options)
      : options_(std::move(options)),
        key_(read_key(options_["key"])),
        market_(grpc::CreateChannel(options_["market"], grpc::InsecureChannelCredentials())),
        info_(call(market_, &v1::MarketService::Stub::GetMarket, v1::GetMarketRequest())) {}

  void run() {
    const v1::Task task = watch(publish());
    if (task.status() != v1::TASK_STATUS_COMPLETED) {
      fail("the task is " + v1::TaskStatus_Name(task.status()) + ": " + task.status_detail());
    }
    v1::LedgerService::Stub ledger(grpc::CreateChannel(info_.ledger_address(), grpc::InsecureChannelCredentials()));
    const std::string vkey = options_["vkey"].empty() ? info_.ledger_vkey() : options_["vkey"];
    for (std::uint32_t job = 0; job < task.jobs_total(); ++job) {
      v1::GetInclusionProofRequest request;
      request.set_task_id(task.task_id());
      request.set_job(job);
      const auto proven = mesh::verify_inclusion(
          proof_of(call(ledger, &v1::LedgerService::Stub::GetInclusionProof, request)), mesh::unhex(task.task_id()), job,
          vkey, info_.chain_id());
      std::cout << "job " << job << ": result " << mesh::hex(proven.result_hash) << " is in block " << proven.height
                << ", block in the log of " << proven.log_size << "\n";
    }
    std::cout << "verified: checkpoint of " << info_.chain_id() << "/blocks signed by "
              << vkey.substr(0, vkey.find('+')) << "\n";
  }

 private:
  std::string token() const { return key_.token(info_.chain_id(), info_.now_ms() + 1000 * kTask.count() * 2); }

  std::string publish() {
    const double size = std::stod(options_["size"]);
    const std::int64_t deadline_s = info_.now_ms() / 1000 + 3600;
    const mesh::Order order{new_request_id(), key_.public_key(), mesh::unhex(info_.market_key()), "synthetic",
                            mesh::payload_digest({{"matrix_size", size}}), units(options_["reward"]),
                            static_cast<std::uint64_t>(deadline_s) * 1000, 0};
    v1::CreateTaskRequest request;
    request.set_challenge_type(order.challenge_type);
    (*request.mutable_payload()->mutable_fields())["matrix_size"].set_number_value(size);
    request.set_reward(options_["reward"]);
    request.set_deadline(deadline_s);
    request.set_request_id(mesh::hex(order.request_id));
    request.set_customer_key(mesh::hex(order.customer_key));
    request.set_order_signature(key_.sign("order", info_.chain_id(), order.pack()));
    const v1::Task task = call(market_, &v1::MarketService::Stub::CreateTask, request, token()).task();
    // The id is the digest of what was signed: the task cannot be another one.
    if (task.task_id() != mesh::hex(mesh::digest("order", info_.chain_id(), order.pack()))) {
      fail("the market made a task that was not ordered");
    }
    std::cout << "task " << task.task_id() << ": " << task.reward() << " CPC held\n";
    return task.task_id();
  }

  // Follows a task until it has ended; a dropped stream is resumed at the cursor of the last event.
  v1::Task watch(const std::string& task_id) {
    const auto until = system_clock::now() + kTask;
    v1::WatchTaskRequest request;
    request.set_task_id(task_id);
    for (int failures = 0; failures < kReconnects; ++failures) {
      grpc::ClientContext context;
      context.set_deadline(until);
      context.AddMetadata("authorization", "Bearer " + token());
      const auto stream = market_.WatchTask(&context, request);
      for (v1::WatchTaskResponse event; stream->Read(&event); failures = 0) {
        request.set_cursor(event.cursor());
        std::cout << "  " << v1::TaskEventKind_Name(event.kind()) << ": " << event.task().jobs_settled() << " of "
                  << event.task().jobs_total() << " jobs settled\n";
        if (event.kind() == v1::TASK_EVENT_KIND_ENDED) return event.task();
      }
      const grpc::Status status = stream->Finish();
      if (!status.ok() && status.error_code() != grpc::StatusCode::UNAVAILABLE) fail(status.error_message());
      std::this_thread::sleep_for(std::chrono::milliseconds(200 * (failures + 1)));
    }
    fail("the market stays away");
  }

  mesh::Proof proof_of(const v1::GetInclusionProofResponse& reply) {
    const v1::ProvenResult& row = reply.result();
    mesh::Proof proof{row.result(), row.header(), row.leaf_index(), {}, {}, reply.checkpoint().note()};
    proof.compute_path.assign(row.compute_path().begin(), row.compute_path().end());
    proof.header_path.assign(row.header_path().begin(), row.header_path().end());
    if (!options_["tamper"].empty()) proof.result[80] ^= 1;
    return proof;
  }

  std::map<std::string, std::string> options_;
  mesh::Key key_;
  v1::MarketService::Stub market_;
  v1::GetMarketResponse info_;
};

}  // namespace

int main(int count, char** words) {
  try {
    Customer(parse(count, words)).run();
    return 0;
  } catch (const mesh::Refused& error) {
    std::cerr << "NOT verified: " << error.what() << "\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
  }
  return 1;
}
