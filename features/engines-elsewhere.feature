Feature: A server elsewhere that speaks the OpenAI API stands behind the same queue and promises

  @ORCHD-REMOTE-1 @ORCHD-CAP-1
  Scenario: A pool of such a server, as its user and its operator see it
    Given a server elsewhere with the model "words-7b" and a key
    And a pool "gpu" of that server with 4 slots
    And the daemon's log is kept
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 16               |
    Then the stream "story" ends with end
    And the started event of "story" says:
      | engine         | openai      |
      | engine_version | vllm 0.11.0 |
      | pool_id        | gpu         |
      | model_ref      | words-7b    |
    And the end event of "story" says:
      | tokens_out    | 16     |
      | finish_reason | length |
      | exact         | yes    |
    When alice asks for "/v1/capabilities"
    Then the answer says:
      | engines.0.engine              | openai         |
      | engines.0.engine_version      | vllm 0.11.0    |
      | engines.0.ctx_max             | 2048           |
      | engines.0.concurrency         | 4              |
      | engines.0.supported_workloads | ["completion"] |
      | pools.0.id                    | gpu            |
      | pools.0.ctx                   | 2048           |
      | pools.0.features.10           | grammar        |
      | models.0.model_ref            | words-7b       |
    When the operator asks for "/v1/pools/gpu/health"
    Then the answer says:
      | state          | ready  |
      | engine         | openai |
      | replicas.0.pid | null   |
    And the server elsewhere was asked with its key, and nobody else was told it

  @ORCHD-REMOTE-1
  Scenario: A chat goes to the server as it is
    Given a server elsewhere with the model "words-7b"
    And a pool "gpu" of that server with 2 slots
    When alice submits and streams "chat":
      | messages   | [{"role":"user","content":"Tell me of the river"}] |
      | max_tokens | 8                                                  |
    Then the stream "chat" ends with end
    And the server elsewhere was last asked for a chat of 1 message

  @ORCHD-REMOTE-1
  Scenario: A model that thinks longer than it may be silent is not taken for dead, and its thoughts are no answer
    Given a server elsewhere with the model "words-7b"
    And its answers to chats begin with 10 thoughts, 60 ms apart
    And a pool "gpu" of that server with 2 slots
    And it may be silent for 400 ms
    When alice submits and streams "deep":
      | messages   | [{"role":"user","content":"Tell me of the river"}] |
      | max_tokens | 8                                                  |
    Then the stream "deep" ends with end
    And the stream "deep" started once and counts 8 tokens without gaps
    And "deep" has the record:
      | attempts | 1 |

  @ORCHD-REMOTE-1
  Scenario: What does not fit is refused before it is accepted
    Given a server elsewhere with the model "words-7b"
    And a pool "gpu" of that server with 2 slots
    And the pool "gpu" is ready
    When alice submits "too long":
      | messages   | [{"role":"user","content":"Tell me of the river"}] |
      | max_tokens | 2045                                               |
    Then the answer is 400 INVALID_PARAMS
    And the message tells "exceed the context of 2048 tokens"

  @ORCHD-REMOTE-3 @ORCHD-ATT-2
  Scenario Outline: An answer that <breaks> goes on where it stopped
    Given a server elsewhere with the model "words-7b"
    And a pool "gpu" of that server with 2 slots
    And it may be silent for 400 ms
    And the pool "gpu" is ready
    When alice submits and streams "uncut":
      | <asks>     | <input>           |
      | max_tokens | 24                |
      | sampling   | {"temperature":0} |
    Then the stream "uncut" ends with end
    When the next answer of the server elsewhere <breaks> after 9 tokens
    And alice submits and streams "cut":
      | <asks>     | <input>           |
      | max_tokens | 24                |
      | sampling   | {"temperature":0} |
    Then the stream "cut" ends with end
    And the streams "uncut" and "cut" have the same tokens
    And the end event of "cut" says:
      | tokens_out    | 24         |
      | continuations | 1          |
      | exact         | unverified |
    And "cut" has the record:
      | attempts | 2 |

    Examples:
      | breaks           | asks     | input                                              |
      | tells an error   | prompt   | Once upon a time                                   |
      | is dropped       | prompt   | Once upon a time                                   |
      | ends too early   | prompt   | Once upon a time                                   |
      | stalls           | prompt   | Once upon a time                                   |
      | is dropped       | messages | [{"role":"user","content":"Tell me of the river"}] |

  @ORCHD-REMOTE-3
  Scenario: A server that cannot go on behind the beginning of an answer says all of it again
    Given a gateway elsewhere with the model "words-7b"
    And a pool "gpu" of that server with 2 slots
    And its context holds 512 tokens
    And the pool "gpu" is ready
    When the next answer of the server elsewhere is dropped after 9 tokens
    And alice submits and streams "cut":
      | messages   | [{"role":"user","content":"Tell me of the river"}] |
      | max_tokens | 24                                                 |
      | sampling   | {"temperature":0}                                  |
    Then the stream "cut" ends with end
    And the stream "cut" started once and counts 24 tokens without gaps
    And the end event of "cut" says:
      | continuations | 1  |
      | exact         | no |

  @ORCHD-REMOTE-3
  Scenario: A busy server is tried again without costing the task an attempt
    Given a server elsewhere with the model "words-7b"
    And a pool "gpu" of that server with 2 slots
    And the pool "gpu" is ready
    When the server elsewhere is busy for the next 3 answers
    And alice submits and streams "patient":
      | prompt     | Once upon a time |
      | max_tokens | 4                |
    Then the stream "patient" ends with end
    And "patient" has the record:
      | attempts | 1 |

  @ORCHD-REMOTE-4 @ORCHD-CANCEL-2
  Scenario: A cancel closes the connection, and the slot takes the next task
    Given a server elsewhere with the model "words-7b"
    And its answers take 5 ms a token
    And a pool "gpu" of that server with 1 slot
    And the pool "gpu" is ready
    When alice submits and streams "long":
      | prompt     | Once upon a time |
      | max_tokens | 1500             |
    And "long" has received 3 tokens
    And alice cancels "long"
    Then the answer is 204
    And the stream "long" ends with error CANCELED
    And the server elsewhere sees 1 answer broken off
    When alice submits and streams "next":
      | prompt     | Once upon a time |
      | max_tokens | 2                |
    Then the stream "next" ends with end

  @ORCHD-REMOTE-2
  Scenario: A key that the server does not take is told at once and not tried over and over
    Given a server elsewhere with the model "words-7b" and a key
    And a pool "gpu" of that server with 2 slots
    And the server elsewhere takes another key now
    And the pool "gpu" is unavailable
    When the operator asks for "/v1/pools/gpu/health"
    Then the answer says:
      | ready                      | false   |
      | last_error.cause           | refused |
      | replicas.0.restarts        | 0       |
    When alice submits "one":
      | prompt     | Once upon a time |
      | max_tokens | 4                |
    Then the answer is 503 POOL_UNAVAILABLE

  @ORCHD-REMOTE-2
  Scenario: A task waits for a server that went away, and runs when it is back
    Given a server elsewhere with the model "words-7b"
    And a pool "gpu" of that server with 2 slots
    And the setting "restart.backoff_ms" is 1
    And the pool "gpu" is ready
    When the server elsewhere goes away
    And alice submits and streams "patient":
      | prompt     | Once upon a time |
      | max_tokens | 4                |
    And the pool "gpu" is restarting
    And the server elsewhere comes back
    Then the stream "patient" ends with end

  @ORCHD-REMOTE-1
  Scenario: Embeddings and rerank, where the server has them
    Given a server elsewhere with the model "vectors" for embedding
    And a pool "vectors" of that server with 1 slot
    And it offers embedding
    And a server elsewhere with the model "judge" for rerank
    And a pool "judge" of that server with 1 slot
    And it offers rerank
    When alice submits and streams "three" to pool "vectors":
      | inputs | ["the small river","the small river","a patient engine"] |
    And alice submits and streams "ranked" to pool "judge":
      | query  | old river                       |
      | inputs | ["blue sky","the old river"] |
    Then the stream "three" ends with end
    And "three" brought 3 unit vectors, of which 1 and 2 are nearest
    And the stream "ranked" ends with end
    And "ranked" ranked input 1 first

  @ORCHD-REMOTE-1
  Scenario: What the server does not offer is refused, not left out
    Given a gateway elsewhere with the model "words-7b"
    And a pool "gpu" of that server with 1 slot
    And its context holds 512 tokens
    When alice submits and streams "grammar":
      | prompt     | Yes or no?                           |
      | max_tokens | 4                                    |
      | sampling   | {"grammar":"root ::= \"yes\""}       |
    Then the stream "grammar" ends with error INVALID_PARAMS
    When alice submits "strict":
      | prompt      | Once upon a time |
      | max_tokens  | 4                |
      | determinism | strict           |
    Then the answer is 400 INVALID_PARAMS
    And the message tells "no cached context"
