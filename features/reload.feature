Feature: An operator gives a pool another model

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-RELOAD-1 @ORCHD-HTTP-4
  Scenario: What runs finishes, what waits goes on with the new model
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 60               |
    And "running" has received 2 tokens
    And alice submits "waiting"
    And the operator gives "words" the model "mock:other" and waits
    Then the answer is 200
    And the answer says:
      | model_ref             | mock:other |
      | reload.phase          | done       |
      | reload.replicas_ready | 1          |
      | ready                 | true       |
    And the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 60 |
      | continuations | 0  |
    And all of them are done
    And "waiting" has the record:
      | model_ref | mock:other |
    And the metrics are:
      | pool_reloads_total{pool_id="words",result="done"} | 1 |

  @ORCHD-RELOAD-1
  Scenario: The same model anew: what runs is cut and goes on
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt      | Once upon a time |
      | max_tokens  | 250              |
      | determinism | strict           |
    And "running" has received 2 tokens
    And the operator gives "words" the model "mock:words" within 10 ms
    Then the answer is 202
    And the answer says:
      | reload.problem | null |
    When the operator gives "words" the model "mock:other" within 10 ms
    Then the answer is 409 CONFLICT
    When the operator drains "words" within 0 ms
    Then the answer is 409 CONFLICT
    And the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 250 |
      | continuations | 1   |
      | exact         | yes |

  @ORCHD-RELOAD-2
  Scenario: A model that does not load leaves the old one
    Given its engine never loads its model at start 2
    And the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 20               |
    And the operator gives "words" the model "mock:other" and waits
    Then the answer is 409 RELOAD_FAILED
    And the message tells "keeps mock:words"
    And the stream "running" ends with end
    When alice submits "next"
    Then all of them are done
    And "next" has the record:
      | model_ref | mock:words |
    And the metrics are:
      | pool_reloads_total{pool_id="words",result="failed"} | 1 |

  @ORCHD-RELOAD-3
  Scenario: What has sent something finishes on its own model, whatever the deadline
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 100              |
    And "running" has received 2 tokens
    And the operator gives "words" the model "mock:other" within 0 ms
    Then the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 100 |
      | continuations | 0   |

  @ORCHD-RELOAD-5
  Scenario: New engines load beside the old ones, and take over
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 300              |
    And "running" has received 2 tokens
    And the operator surges "words" to the model "mock:other" within 60000 ms
    Then the answer is 202
    And the reload of "words" is draining
    When alice submits and streams "next":
      | prompt     | Once upon a time |
      | max_tokens | 5                |
    Then the stream "next" ends with end
    And "next" has the record:
      | model_ref  | mock:other |
      | replica_id | words-0b   |
    And "running" is running
    And the stream "running" ends with end
    And the reload of "words" is done

  @ORCHD-RELOAD-4
  Scenario: The new model stays until the configuration of the pool changes
    Given the pool "words" is ready
    When the operator gives "words" the model "mock:other" and waits
    And the daemon is stopped
    And the daemon starts again
    And alice submits "next"
    Then "next" has the record:
      | model_ref | mock:other |

  @ORCHD-RELOAD-1 @ORCHD-AUTH-2
  Scenario: Only admins reload, and only to what the pool can take
    When alice gives "words" the model "mock:other" within 0 ms
    Then the answer is 403 FORBIDDEN
    When the operator gives "wrods" the model "mock:other" within 0 ms
    Then the answer is 404 NOT_FOUND
    When the operator gives "words" the model "file:/m/a.gguf" within 0 ms
    Then the answer is 400 INVALID_PARAMS
    And the message tells "mock:NAME"

  @ORCHD-RELOAD-1
  Scenario: While nothing starts the pool is not ready, its tasks queue, and health tells the phase
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 150              |
    And "running" has received 2 tokens
    And the operator gives "words" the model "mock:other" within 60000 ms
    Then the reload of "words" is draining
    When alice submits "meanwhile"
    Then the answer is 202
    When alice asks for "/v1/pools/words/health"
    Then the answer says:
      | model_ref             | mock:words |
      | live                  | true       |
      | ready                 | false      |
      | draining              | true       |
      | drain                 | null       |
      | reload.strategy       | recreate   |
      | reload.new_model_ref  | mock:other |
      | reload.running        | 1          |
      | reload.replicas       | 1          |
      | reload.replicas_ready | 0          |
      | reload.problem        | null       |
    And the metrics are:
      | pool_ready{pool_id="words"}    | 0 |
      | pool_draining{pool_id="words"} | 0 |
    And the reload of "words" is done
    And all of them are done
    And "meanwhile" has the record:
      | model_ref | mock:other |
    When alice asks for "/v1/pools/words/health"
    Then the answer says:
      | ready    | true  |
      | draining | false |

  @ORCHD-RELOAD-1
  Scenario: A drained pool is not reloaded
    When the operator drains "words" within 0 ms
    And the operator gives "words" the model "mock:other" within 0 ms
    Then the answer is 409 CONFLICT
    And the message tells "resume it first"
    When the operator sends POST "/v1/pools/words/resume"
    And the operator gives "words" the model "mock:other" and waits
    Then the answer is 200

  @ORCHD-RELOAD-1 @ORCHD-HTTP-4
  Scenario: A reload that cannot be is refused
    When the operator sends POST "/v1/pools/words/reload" with the body:
      """
      {"new_model_ref": "mock:other", "strategy": "overnight"}
      """
    Then the answer is 400 INVALID_PARAMS
    When the operator sends POST "/v1/pools/words/reload" with the body:
      """
      {"model_ref": "mock:other", "strategy": "surge"}
      """
    Then the answer is 400 INVALID_PARAMS
    And the message tells "new_model_ref"

  @ORCHD-RELOAD-2
  Scenario: What was cut for a reload that fails goes on with the old model
    Given its engine never loads its model at start 2
    And the pool "words" is ready
    When alice submits and streams "running":
      | prompt      | Once upon a time |
      | max_tokens  | 150              |
      | determinism | strict           |
    And "running" has received 2 tokens
    And alice submits "waiting"
    And the operator gives "words" the model "mock:words" within 0 ms
    Then the reload of "words" is failed
    And the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 150 |
      | continuations | 1   |
      | exact         | yes |
    And all of them are done
    When alice asks for "/v1/pools/words/health"
    Then the answer says:
      | model_ref | mock:words |
      | ready     | true       |
      | draining  | false      |

  @ORCHD-RELOAD-2
  Scenario: A file that is not the one that was meant changes nothing
    Given a pool "chat" of llama-server with the file "old.gguf" and 1 slot
    And the model file "new.gguf"
    And the file "letter.gguf" that is no model
    And the pool "chat" is ready
    When the operator gives "chat" the model "file:none.gguf" within 0 ms
    Then the answer is 400 INVALID_PARAMS
    And the message tells "there is no file"
    When the operator gives "chat" the model "file:../old.gguf" within 0 ms
    Then the answer is 400 INVALID_PARAMS
    And the message tells "models.dir"
    When the operator gives "chat" the model "file:letter.gguf" and waits
    Then the answer is 409 RELOAD_FAILED
    When the operator gives "chat" the model "file:new.gguf" with the digest "0000000000000000000000000000000000000000000000000000000000000000" and waits
    Then the answer is 409 RELOAD_FAILED
    And the message tells "the digest of"
    When alice asks for "/v1/pools/chat/health"
    Then the answer says:
      | model_ref            | file:old.gguf |
      | ready                | true          |
      | replicas.0.restarts  | 0             |
      | reload.phase         | failed        |
    When the operator gives "chat" the model "file:new.gguf" and waits
    Then the answer is 200
    And the answer says:
      | model_ref | file:new.gguf |

  @ORCHD-RELOAD-3 @ORCHD-RELOAD-5
  Scenario: Where the old engine is lost, what it had begun ends and asks to be submitted again
    Given its engine crashes after 60 tokens in generation 1
    And the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 300              |
    And "running" has received 2 tokens
    And the operator surges "words" to the model "mock:other" within 60000 ms
    Then the stream "running" ends with error WORKER_RESET
    And the error event of "running" says:
      | retriable | true |
    And the reload of "words" is done

  @ORCHD-RELOAD-3
  Scenario: What waits and does not fit the new model ends, the rest goes on with it
    Given a pool "chat" of llama-server with the file "old.gguf" and 2 slots
    And its llama-server is told "hang-at-once,ctx-of-narrow.gguf=64"
    And the model file "narrow.gguf"
    And the pool "chat" is ready
    When alice submits and streams "long" to pool "chat":
      | prompt     | Once upon a time |
      | max_tokens | 100              |
    And alice submits "short" to pool "chat":
      | prompt     | Once upon a time |
      | max_tokens | 10               |
    And the operator gives "chat" the model "file:narrow.gguf" within 0 ms
    Then the stream "long" ends with error WORKER_RESET
    And the error event of "long" says:
      | retriable | true |
    And "short" has the record:
      | error | null |

  @ORCHD-RELOAD-5
  Scenario: A surge pauses nothing, and what it cuts goes on with the new engines
    Given its model takes 400 ms to load
    And the pool "words" is ready
    When alice submits and streams "running":
      | prompt      | Once upon a time |
      | max_tokens  | 250              |
      | determinism | strict           |
    And "running" has received 2 tokens
    And the operator surges "words" to the model "mock:words" within 0 ms
    Then the reload of "words" is loading
    When alice asks for "/v1/pools/words/health"
    Then the answer says:
      | ready            | true    |
      | draining         | false   |
      | replicas.0.state | busy    |
      | replicas.1.id    | words-0b |
    And the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 250 |
      | continuations | 1   |
      | exact         | yes |
    And "running" has the record:
      | replica_id | words-0b |

  @ORCHD-RELOAD-5 @ORCHD-RELOAD-2
  Scenario: A surge that fails disturbs nobody
    Given its engine never loads its model at start 2
    And the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 60               |
    And "running" has received 2 tokens
    And the operator surges "words" to the model "mock:other" and waits
    Then the answer is 409 RELOAD_FAILED
    When alice asks for "/v1/pools/words/health"
    Then the answer says:
      | model_ref           | mock:words |
      | ready               | true       |
      | replicas.0.id       | words-0    |
      | replicas.0.restarts | 0          |
      | last_error          | null       |
      | reload.phase        | failed     |
    And the stream "running" ends with end
    And the end event of "running" says:
      | continuations | 0 |

  @ORCHD-RELOAD-4
  Scenario: A pool whose configuration has changed has the model that it names
    Given the pool "words" is ready
    When the operator gives "words" the model "mock:other" and waits
    And the daemon is stopped
    And its context holds 512 tokens
    And alice submits "next"
    Then "next" is done
    And "next" has the record:
      | model_ref | mock:words |
